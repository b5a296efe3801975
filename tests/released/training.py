"""A small training that every released version has run: ``python training.py 0.1.0``.

It writes to the folder of that version what the version writes: ``stopped/``, a run that ended in
the middle of its second epoch, with checkpoints, positions of loaders and a log; and
``expected.json``, what an undisturbed run did after that moment. `test_released.py` resumes the
stopped run. Only names that no version may remove are used here.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from brain_ckpt import Checkpointer
from brain_core import Brain, EpochCounter, FileTrainLogger, Stage
from brain_data import ReproducibleRandomSampler, SaveableDataLoader

EPOCHS, SAVE_EVERY, STOPPED_AT = 3, 3, 11  # in steps; an epoch has 6


class Stopped(BaseException):
    """Ends a run like a kill: nothing is saved."""


class Regression(Brain):
    """Learns a line; notes each batch of training: its rows, its loss and a random number."""

    batches: list  # of [rows, loss, number]
    stop_at: int | None = None

    def compute_forward(self, batch, stage):
        return self.modules.model(batch.double().unsqueeze(1) / 24)

    def compute_objectives(self, predictions, batch, stage):
        loss = torch.nn.functional.mse_loss(predictions.squeeze(1), batch.double() / 12)
        if stage == Stage.TRAIN:
            if self.stop_at == len(self.batches):
                raise Stopped
            self.batches.append([batch.tolist(), loss.item(), torch.rand(()).item()])
        return loss

    def on_stage_end(self, stage, loss, epoch=None):
        if stage == Stage.VALID:
            self.hparams.logger.log_stats({"epoch": epoch}, valid_stats={"loss": loss})
            self.checkpointer.save_and_keep_only({"loss": loss}, num_to_keep=2, min_keys=["loss"])


def train(folder: Path, stop_at: int | None = None) -> Regression:
    """Train in a folder, or resume what is there; return the `Brain`."""
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1, dtype=torch.float64)
    epochs, logger = EpochCounter(EPOCHS), FileTrainLogger(folder / "train_log.txt", precision=6)
    brain = Regression(
        {"model": model},
        lambda parameters: torch.optim.Adam(parameters, lr=0.05),
        {"logger": logger},
        {"device": "cpu", "ckpt_interval_steps": SAVE_EVERY, "noprogressbar": True},
        Checkpointer(folder / "save", {"model": model, "epochs": epochs, "logger": logger}),
    )
    brain.batches, brain.stop_at = [], stop_at
    rows = list(range(24))
    loader = SaveableDataLoader(rows, batch_size=4, sampler=ReproducibleRandomSampler(rows, seed=7))
    brain.fit(epochs, loader, torch.arange(100, 108))
    return brain


def summary(brain: Regression, folder: Path, since: int = 0) -> dict:
    """Return what a run did since a step, and where it ended."""
    return {
        "batches": brain.batches[since:],
        "weights": [value.item() for value in brain.modules.model.parameters()],
        "log": (folder / "train_log.txt").read_text(encoding="utf-8"),
        "checkpoints_kept": len(list((folder / "save").glob("CKPT+*"))),
    }


def main(target: Path) -> None:
    """Write what the installed version writes."""
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as undisturbed:
        resumed_at = STOPPED_AT - STOPPED_AT % SAVE_EVERY
        expected = summary(train(Path(undisturbed)), Path(undisturbed), resumed_at)
    (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")
    stopped = target / "stopped"
    shutil.rmtree(stopped, ignore_errors=True)
    stopped.mkdir()
    with contextlib.suppress(Stopped):
        train(stopped, STOPPED_AT)
    (stopped / "save/.brain.lock").unlink(missing_ok=True)  # names the machine


if __name__ == "__main__":
    main(Path(__file__).with_name(sys.argv[1]))
