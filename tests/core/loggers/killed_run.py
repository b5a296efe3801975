"""A run that logs with one kind of logger, and kills itself once at a chosen place.

    python killed_run.py KIND FOLDER [PLACE]

It trains four epochs and saves after each. PLACE is ``logged`` (epoch 2 is logged and not saved),
``saved`` (epoch 2 is saved) or ``inside`` (in the middle of epoch 3).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from brain_ckpt import Checkpointer
from brain_core import (
    Brain,
    CSVLogger,
    EpochCounter,
    FileTrainLogger,
    JSONLinesLogger,
    LoggerList,
    MLflowLogger,
    Report,
    Stage,
    TensorboardLogger,
    WandBLogger,
)


def make_logger(kind, folder):
    """Return a logger that writes into a folder."""
    if kind == "wandb":
        import wandb

        return WandBLogger(wandb.init, mode="offline", project="p", dir=str(folder))
    makers = {
        "text": lambda: FileTrainLogger(folder / "log.txt"),
        "csv": lambda: CSVLogger(folder / "log.csv"),
        "json": lambda: JSONLinesLogger(folder / "log.jsonl"),
        "tensorboard": lambda: TensorboardLogger(folder / "tb"),
        "mlflow": lambda: MLflowLogger("an experiment", (folder / "mlruns").as_uri()),
        "list": lambda: LoggerList(make_logger("text", folder), make_logger("json", folder)),
        "report": lambda: None,
    }
    return makers[kind]()


class Killed(Brain):
    """A Brain that logs, saves and is killed."""

    place = ""

    def compute_forward(self, batch, stage):
        return self.modules.model(batch)

    def compute_objectives(self, predictions, batch, stage):
        return predictions.square().mean()

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        self.kill_if(self._run.epoch == 3 and self.step == 3, "inside")

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage is Stage.TRAIN:
            self.train_loss = stage_loss
        elif stage is Stage.VALID:
            self.stage_stats["halved"] = stage_loss / 2
            if self.hparams.train_logger is not None:
                self.hparams.train_logger.log_stats(
                    {"epoch": epoch, "lr": 0.1}, {"loss": self.train_loss}, {"loss": stage_loss}
                )
            self.kill_if(epoch == 2, "logged")
            self.checkpointer.save_and_keep_only({"loss": stage_loss}, num_to_keep=1)
            self.kill_if(epoch == 2, "saved")

    def kill_if(self, is_here, place):
        if is_here and self.place == place:
            os.kill(os.getpid(), signal.SIGKILL)


def main(kind, folder, place=""):
    """Train."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = list(torch.randn(12, 4))
    brain = Killed(
        {"model": torch.nn.Linear(4, 4)},
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        {"train_logger": make_logger(kind, Path(folder))},
        {"device": "cpu", "ckpt_interval_steps": 2},
        Checkpointer(Path(folder) / "save"),
        callbacks=[Report(folder, every_steps=4)] if kind == "report" else [],
    )
    brain.place = place
    brain.fit(EpochCounter(4), data, data, train_loader_kwargs={"batch_size": 2, "shuffle": True})


if __name__ == "__main__":
    main(*sys.argv[1:])
