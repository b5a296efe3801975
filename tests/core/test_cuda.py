"""Tests that need a GPU; they are skipped without one."""

from __future__ import annotations

import math
import socket
import warnings

import pytest
import torch

from brain_ckpt import Checkpointer
from brain_core import Brain, EpochCounter, TrainingStopped, seed_everything
from brain_dist import ddp_init_group

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class OnDevice:
    """Batches that are on the device already, so that no copy synchronizes."""

    def __init__(self, count=8, bad=()):
        generator = torch.Generator().manual_seed(7)
        pairs = [
            (torch.randn(16, 32, generator=generator), torch.randn(16, 4, generator=generator))
            for _ in range(count)
        ]
        for number in bad:
            pairs[number][0].fill_(math.nan)
        self.batches = [(x.to(DEVICE), y.to(DEVICE)) for x, y in pairs]

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


class Run(Brain):
    """A regression that calls ``watch`` at the beginning and end of each batch."""

    watch = None

    def compute_forward(self, batch, stage):
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        return torch.nn.functional.mse_loss(predictions, batch[1])

    def on_fit_batch_start(self, batch, should_step):
        if self.watch is not None:
            self.watch.begin(should_step)

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        if self.watch is not None:
            self.watch.end()
            if self.watch.stop_after == self.step:
                self.stop()


class Watch:
    """Counts the synchronizations of a step; inside a window, each is an error."""

    def __init__(self, stop_after=None):
        self.waits, self.stop_after = [], stop_after
        self._caught = None

    def begin(self, should_step):
        self._caught = warnings.catch_warnings(record=True)
        self._seen = self._caught.__enter__()
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn" if should_step else "error")

    def end(self):
        torch.cuda.set_sync_debug_mode("default")
        self._caught.__exit__(None, None, None)
        self.waits.append(sum("synchronizing" in str(w.message) for w in self._seen))


@pytest.fixture(autouse=True)
def _default_sync_debug_mode():
    yield
    torch.cuda.set_sync_debug_mode("default")


def make(folder=None, watch=None, fused=False, **options):
    """Return a Brain with a small model with dropout on the device."""
    seed_everything(3)
    model = torch.nn.Sequential(
        torch.nn.Linear(32, 64), torch.nn.Dropout(0.2), torch.nn.Tanh(), torch.nn.Linear(64, 4)
    )
    checkpointer = None if folder is None else Checkpointer(folder, {"model": model})
    brain = Run(
        {"model": model},
        lambda p: torch.optim.AdamW(p, lr=0.01, fused=fused),
        run_opts={"device": DEVICE, **options},
        checkpointer=checkpointer,
    )
    brain.watch = watch
    return brain


def weights_of(brain):
    """Return all weights on the CPU."""
    return [p.detach().cpu() for p in brain.raw_modules.parameters()]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_only_a_step_synchronizes_with_the_device_and_once(precision):
    """The step is decided with one read; the mean loss and the other batches need none."""
    watch = Watch()
    brain = make(watch=watch, precision=precision, grad_accumulation_factor=4)
    brain.fit(range(2), OnDevice(), progressbar=False)
    assert watch.waits[0::4] == watch.waits[1::4] == watch.waits[2::4] == [0] * 4
    assert max(watch.waits[7::4]) <= 1  # the first step also creates the optimizer's state


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_hundred_steps_of_a_fused_optimizer_synchronize_never(precision):
    """The device leaves out a step by itself; the first step creates the optimizer's state."""
    watch = Watch()
    brain = make(watch=watch, fused=True, precision=precision)
    brain.fit(range(13), OnDevice(), progressbar=False)
    assert watch.waits[1:] == [0] * (len(watch.waits) - 1)
    assert len(watch.waits) > 100


def test_batches_in_pinned_memory_arrive_on_the_device_and_their_steps_synchronize_never():
    """The next one is copied on a side stream; the weights are those of batches that are moved."""
    generator = torch.Generator().manual_seed(7)
    rows = torch.utils.data.TensorDataset(
        torch.randn(160, 32, generator=generator), torch.randn(160, 4, generator=generator)
    )
    weights = []
    for pinned in (True, False):
        watch, devices = Watch(), set()
        brain = make(watch=watch if pinned else None, fused=True)

        def forward(batch, stage, brain=brain, devices=devices):
            devices.add(batch[0].device.type)
            batch[:] = [tensor.to(brain.device) for tensor in batch]
            return brain.modules.model(batch[0])

        brain.compute_forward = forward
        kwargs = {"batch_size": 16, "shuffle": True, "pin_memory": pinned}
        brain.fit(range(11), rows, progressbar=False, train_loader_kwargs=kwargs)
        assert devices == {"cuda" if pinned else "cpu"}
        assert watch.waits[1:] == ([0] * 109 if pinned else [])
        weights.append(weights_of(brain))
    for one, other in zip(*weights, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_to_about_the_same_loss(precision):
    """The weights stay float32, and the scaler is enabled for fp16 only."""
    losses = []
    for chosen in ("fp32", precision):
        brain = make(precision=chosen)
        brain.fit(range(3), OnDevice(), progressbar=False)
        losses.append(brain.evaluate(OnDevice(), progressbar=False))
        assert brain.scaler.is_enabled() == (chosen == "fp16")
        assert {p.dtype for p in weights_of(brain)} == {torch.float32}
    assert abs(losses[1] - losses[0]) < 0.05 * losses[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_batch_that_is_not_finite_changes_nothing(precision):
    """A nonfinite batch changes no weight and no optimizer state."""
    brain = make(precision=precision)
    brain.fit(range(1), OnDevice(count=3, bad=(0, 1, 2)), progressbar=False)
    same = make(precision=precision)
    for one, other in zip(weights_of(brain), weights_of(same), strict=True):
        assert torch.equal(one, other)
    assert brain.optimizer.state_dict()["state"] == {}


def test_a_stopped_run_resumes_bit_for_bit(tmp_path):
    """The resumed run has equal weights, as the device's generator for dropout is restored."""

    def run(folder, stop_after=None):
        brain = make(folder, Watch(stop_after), precision="bf16")
        counter = EpochCounter(2)
        brain.checkpointer.add_recoverable("counter", counter)
        try:
            brain.fit(counter, OnDevice(), progressbar=False)
        except TrainingStopped:
            assert stop_after is not None
        brain.checkpointer.close()
        return weights_of(brain)

    whole = run(tmp_path / "whole")
    run(tmp_path / "save", 3)
    for one, other in zip(whole, run(tmp_path / "save"), strict=True):
        assert torch.equal(one, other)


def wrapped(rank, parallel):
    """Train in a group of one process; return the weights."""
    ddp_init_group({"device": DEVICE})
    brain = make(parallel=parallel, grad_accumulation_factor=2)
    brain.fit(range(2), OnDevice(), progressbar=False)
    state = brain.raw_modules.model.state_dict()
    return [(v.full_tensor() if hasattr(v, "full_tensor") else v).tolist() for v in state.values()]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_group_of_one_gpu_trains_to_the_weights_of_a_single_process(ranks, parallel):
    """DDP with no_sync and FSDP2 on a mesh of one give the weights of an unwrapped model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environ = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    alone = make(grad_accumulation_factor=2)
    alone.fit(range(2), OnDevice(), progressbar=False)
    found = ranks(wrapped, 1, parallel, group=False, environ=environ, timeout_s=120)[0]
    for one, other in zip(weights_of(alone), found, strict=True):
        torch.testing.assert_close(one, torch.tensor(other), rtol=1e-5, atol=1e-6)
