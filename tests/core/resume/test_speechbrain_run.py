"""A run that SpeechBrain 1.1 began: gone on with here, and run here from the start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from brain_ckpt import Checkpointer
from brain_core import EpochCounter, Stage

RUN = Path(__file__).parents[2] / "ckpt" / "data" / "speechbrain-1.1"


class Rows(torch.utils.data.Dataset):
    """The 202 rows of that run, with their indices."""

    def __init__(self):
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(202, 8, generator=generator)
        self.y = torch.randn(202, 4, generator=generator)

    def __len__(self):
        return 202

    def __getitem__(self, index):
        return self.x[index], self.y[index], index


@pytest.fixture
def resumable(regression, tmp_path):
    """Return that run under our Brain; its checkpoints belong into the folder given."""

    class Run(regression):
        def init_optimizers(self):
            super().init_optimizers()
            self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 200)
            self.checkpointer.add_recoverable("scheduler", self.scheduler)

        def on_fit_batch_end(self, batch, outputs, loss, should_step):
            self.order.append(batch[2].tolist())
            self.scheduler.step()

        def on_stage_end(self, stage, stage_loss, epoch=None):
            if stage is Stage.VALID:
                self.checkpointer.save_and_keep_only(meta={"loss": stage_loss}, min_keys=["loss"])

    def make(folder):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.LayerNorm(16), torch.nn.Linear(16, 4)
        )
        counter = EpochCounter(3)
        brain = Run(
            {"model": model},
            lambda p: torch.optim.AdamW(p, lr=0.01),
            {},
            {"ckpt_interval_steps": 7, "device": "cpu"},
            Checkpointer(folder, {"model": model, "counter": counter}),
        )
        brain.order = []
        generator = torch.Generator().manual_seed(2)
        valid = [
            [torch.randn(4, 8, generator=generator), torch.randn(4, 4, generator=generator)]
            for _ in range(2)
        ]
        valid = torch.utils.data.DataLoader(valid, batch_size=None)
        brain.fit(counter, Rows(), valid, train_loader_kwargs={"batch_size": 4, "shuffle": True})
        return brain

    return make


def assert_finished_as_speechbrain(brain):
    """Compare every weight with what SpeechBrain's undisturbed run ended as.

    That run was made on another processor, whose kernels round otherwise: a plain loop over the
    same batches differs from it by up to 2e-7 here, and by nothing there.
    """
    finished = torch.load(RUN / "finished.pt", weights_only=True)
    for name, value in brain.modules.model.state_dict().items():
        torch.testing.assert_close(value, finished[name], rtol=0, atol=1e-6)


def by_hand(order):
    """Return the weights after that run as a plain loop, on this processor."""
    rows = Rows()
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.LayerNorm(16), torch.nn.Linear(16, 4)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    for batch in order:
        torch.nn.functional.mse_loss(model(rows.x[batch]), rows.y[batch]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return model.state_dict()


def test_a_run_that_speechbrain_began_goes_on_to_the_same_weights(resumable, tmp_path):
    """From the middle of its second epoch, batch by batch."""
    shutil.copytree(RUN / "stopped", tmp_path / "save")
    brain = resumable(tmp_path / "save")
    order = json.loads((RUN / "order.json").read_text())
    assert brain.order == order[51 + 21 :]
    assert_finished_as_speechbrain(brain)


def test_the_same_run_from_the_start_takes_the_same_batches_to_the_same_bits(resumable, tmp_path):
    """Moving a recipe over changes nothing in what it computes."""
    brain = resumable(tmp_path / "save")
    order = json.loads((RUN / "order.json").read_text())
    assert brain.order == order
    assert_finished_as_speechbrain(brain)
    for name, value in by_hand(order).items():
        assert torch.equal(brain.modules.model.state_dict()[name], value), name
