"""The run option for a mirror: training copies its checkpoints, and resumes from the copies."""

from __future__ import annotations

import shutil

import pytest
import torch

from brain_ckpt import Checkpointer
from brain_core import Brain, EpochCounter

pytest.importorskip("obstore")


class Linear(Brain):
    """A linear model that may stop in its third step."""

    def compute_forward(self, batch, stage):
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        return torch.nn.functional.mse_loss(predictions, batch[1])

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        if self.stop_at == self.optimizer_step:
            self.stop("the machine is taken back")


@pytest.fixture
def make(tmp_path):
    """Return a function that makes a run in a folder, with options."""

    def made(folder, stop_at=None, **run_opts):
        torch.manual_seed(3)
        model = torch.nn.Linear(4, 2)
        counter = EpochCounter(2)
        brain = Linear(
            {"model": model},
            lambda parameters: torch.optim.SGD(parameters, lr=0.1),
            run_opts={"device": "cpu", **run_opts},
            checkpointer=Checkpointer(tmp_path / folder, {"model": model, "counter": counter}),
        )
        brain.stop_at = stop_at
        generator = torch.Generator().manual_seed(7)
        rows = torch.randn(24, 4, generator=generator), torch.randn(24, 2, generator=generator)
        data = torch.utils.data.TensorDataset(*rows)
        brain.train = lambda: brain.fit(counter, data, train_loader_kwargs={"batch_size": 4})
        brain.test = lambda: brain.evaluate(data, test_loader_kwargs={"batch_size": 4})
        return brain

    return made


def test_a_stopped_run_goes_on_from_its_mirror_after_the_loss_of_its_disk(make, tmp_path):
    """To the same weights, and evaluation finds them there, too."""
    mirror = f"file://{tmp_path}/objects"
    undisturbed = make("undisturbed")
    undisturbed.train()
    stopped = make("first", stop_at=8, mirror=mirror)
    with pytest.raises(SystemExit):
        stopped.train()
    shutil.rmtree(tmp_path / "first")
    resumed = make("second", mirror=mirror, ckpt_interval_steps=100)
    resumed.train()
    assert resumed.optimizer_step == 12
    assert torch.equal(resumed.modules.model.weight, undisturbed.modules.model.weight)
    shutil.rmtree(tmp_path / "second")
    evaluated = make("third", mirror=mirror)
    evaluated.test()
    assert torch.equal(evaluated.modules.model.weight, undisturbed.modules.model.weight)


def test_a_debug_run_is_not_copied(make, tmp_path):
    """Its checkpoints are in a temporary directory, and nowhere else."""
    brain = make("debug", mirror=f"file://{tmp_path}/objects", debug=True)
    brain.train()
    assert brain.checkpointer.mirror is None
    assert not (tmp_path / "objects").exists()


def test_a_negative_grace_time_is_refused(make):
    """Zero waits for nothing."""
    with pytest.raises(ValueError, match="mirror_grace_seconds must be 0 or more, got -1"):
        make("save", mirror_grace_seconds=-1)
