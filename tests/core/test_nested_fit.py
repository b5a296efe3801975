"""A fit that a hook of another fit calls, as recipes for GANs do."""

import pytest
import torch

from brain_ckpt import Checkpointer
from brain_core import EpochCounter, Stage
from brain_data import ReproducibleWeightedRandomSampler


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the loop may catch it."""


@pytest.fixture
def make_run(regression, pairs, tmp_path):  # noqa: C901  # one run, hook by hook
    """Return a function that makes a run which fits a second model before each epoch."""

    class Run(regression):
        inner = False
        kill_at = None

        def compute_forward(self, batch, stage):
            return (self.modules.second if self.inner else self.modules.model)(batch[0])

        def make_dataloader(self, dataset, stage, ckpt_prefix="dataloader-", **kwargs):
            if stage is Stage.TRAIN:
                weights, epoch = torch.ones(len(dataset)), self.hparams.counter.current
                kwargs["sampler"] = sampler = ReproducibleWeightedRandomSampler(
                    weights, num_samples=12, replacement=False, epoch=epoch
                )
                if not self.inner:
                    self.train_sampler = sampler
            return super().make_dataloader(dataset, stage, ckpt_prefix, **kwargs)

        def on_fit_start(self):
            if not self.inner:
                super().on_fit_start()

        def on_stage_start(self, stage, epoch=None):
            if stage is Stage.TRAIN and not self.inner:
                self.inner = True
                self.fit(range(1), pairs, train_loader_kwargs={"batch_size": 4})
                self.inner = False

        def fit_batch(self, batch):
            loss = super().fit_batch(batch)
            self.seen.append((self.inner, batch[0].tolist()))
            if len(self.seen) == self.kill_at:
                raise Killed
            return loss

        def on_stage_end(self, stage, stage_loss, epoch=None):
            self.ends.append((self.inner, epoch, self.step))

    def make(folder):
        torch.manual_seed(5)
        modules = {"model": torch.nn.Linear(4, 2), "second": torch.nn.Linear(4, 2)}
        counter = EpochCounter(3)
        run = Run(
            modules,
            lambda p: torch.optim.AdamW(p, lr=0.05),
            {"counter": counter},
            {"device": "cpu", "ckpt_interval_steps": 2, "recover_attributes": False},
            Checkpointer(tmp_path / folder, {**modules, "counter": counter}),
        )
        run.seen, run.ends = [], []
        run.train = lambda: run.fit(counter, pairs, train_loader_kwargs={"batch_size": 2})
        return run

    return make


def test_the_outer_fit_goes_on_as_if_there_were_no_inner_one(make_run):
    """Its step, epoch and checkpoints are its own; the inner one saves nothing."""
    run = make_run("whole")
    run.train()
    assert [(inner, epoch) for inner, epoch, _ in run.ends] == [
        (True, 0), (False, 1), (True, 0), (False, 2), (True, 0), (False, 3)
    ]  # fmt: skip
    assert [step for inner, _, step in run.ends if not inner] == [6, 6, 6]
    assert [inner for inner, _ in run.seen] == ([True] * 3 + [False] * 6) * 3


def test_the_inner_fit_keeps_the_epoch_that_its_sampler_was_given(make_run):
    """Each inner fit counts from 0 again, and must not draw the same rows each time."""
    run = make_run("rows")
    run.train()
    inner = [rows for is_inner, rows in run.seen if is_inner]
    assert inner[:3] != inner[3:6] != inner[6:]


def test_a_run_killed_in_the_outer_fit_goes_on_at_its_position(make_run):
    """The checkpoint holds the outer loader's position, not the inner one's."""
    whole = make_run("whole")
    whole.train()
    run = make_run("killed")
    run.kill_at = 9 + 3 + 5  # after the checkpoint of batch 4 of epoch 2's 6
    with pytest.raises(Killed):
        run.train()
    run = make_run("killed")
    run.train()
    outer = [rows for inner, rows in run.seen if not inner]
    assert outer == [rows for inner, rows in whole.seen if not inner][10:]
    assert [step for inner, _, step in run.ends if not inner] == [6, 6]
