"""`GradNormMonitor` and `ThroughputMonitor`: their figures."""

from __future__ import annotations

import time

import pytest
import torch

from brain_core import Callback, GradNormMonitor, Stage, ThroughputMonitor
from brain_core.callbacks.monitors import samples_in_batch
from brain_core.callbacks.runner import CallbackRunner
from brain_core.testing import assert_resumes_exactly


class Keep(Callback):
    """Keeps the figures of each training pass."""

    def __init__(self):
        self.stats = []

    def on_stage_end(self, brain, stage, stats, epoch):
        if stage is Stage.TRAIN:
            self.stats.append(dict(stats))


def test_gradient_norms_are_averaged_over_the_steps_of_an_epoch(make_scripted, numbers):
    """The gradient is the batch's number; the norm is that before clipping."""
    keep = Keep()
    brain = make_scripted(max_grad_norm=0.5)
    brain._callbacks = CallbackRunner([GradNormMonitor(), keep], brain)
    brain.fit(range(2), numbers(1.0, float("inf"), 4.0))
    for stats in keep.stats:
        assert (stats["grad_norm"], stats["grad_norm_max"], stats["skipped_steps"]) == (2.5, 4.0, 1)


def test_the_norm_of_several_optimizers_is_that_of_all_gradients(net, fit_args):
    """The root of the sum of their squares."""
    seen = []

    class Two(net.Net):
        def init_optimizers(self):
            parts = self.modules.net
            self.optimizers_dict = {
                name: torch.optim.SGD(parts[int(name)].parameters(), lr=0.1) for name in "013"
            }

        def optimizers_step(self):
            gradients = [p.grad for p in self.modules.parameters()]
            total = torch.cat([g.flatten() for g in gradients]).norm()
            super().optimizers_step()
            seen.append((total, self.grad_norm))

    brain = net.make(cls=Two)
    assert brain.grad_norm is None
    brain.fit(**fit_args(range(1)))
    for total, norm in seen:
        torch.testing.assert_close(norm, total)


@pytest.mark.long
def test_a_killed_run_has_the_same_norms(net, fit_args):
    """Norms that were not read when a checkpoint was saved are in it."""
    assert_resumes_exactly(
        lambda folder: net.make(folder, [GradNormMonitor()], ckpt_interval_steps=2),
        lambda _: fit_args(range(1, 3)),
        kills=[3, 8],
    )


class Slow(torch.utils.data.Dataset):
    """Rows that take 20 ms each."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        time.sleep(0.02)
        return torch.randn(3), torch.randn(1)


def test_the_share_of_time_that_training_waits_for_data_is_measured(net):
    """Of slow rows it is most of the time, of slow steps little."""

    class Pairs(net.Net):
        pause = 0.0

        def compute_forward(self, batch, stage):
            time.sleep(self.pause)
            return self.modules.net(batch[0])

        def compute_objectives(self, predictions, batch, stage):
            return (predictions - batch[1]).square().mean()

    shares, two = [], {"train_loader_kwargs": {"batch_size": 2}}
    for data, pause in ((Slow(), 0.0), ([(torch.ones(3), torch.ones(1))] * 6, 0.04)):
        keep = Keep()
        brain = net.make(callbacks=[ThroughputMonitor(), keep], cls=Pairs)
        brain.fit(range(1), [(torch.ones(3), torch.ones(1))] * 2, **two)
        brain.pause = pause
        brain.fit(range(1), data, **two)
        shares.append(keep.stats[-1]["data_wait"])
        at_most = 6 / 0.12
        assert 0 < keep.stats[-1]["samples_per_s"] <= at_most
    assert shares[0] > shares[1]


@pytest.mark.parametrize(
    ("batch", "rows"),
    [
        (torch.zeros(4, 2), 4),
        ([torch.zeros(4, 2), torch.zeros(4)], 4),
        ((["a", "b"], torch.zeros(2)), 2),
        ({"ids": ["a", "b", "c"]}, 3),
        (["a", "b", "c"], 3),
        (torch.tensor(1.0), 1),
        (object(), 1),
        ((), 0),
    ],
)
def test_the_rows_of_any_batch_are_counted(batch, rows):
    """By its first tensor, else by its length."""
    assert samples_in_batch(batch) == rows
