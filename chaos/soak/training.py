"""The process that is measured: ``python -m chaos.soak.training FOLDER INTERVAL_S LEAK``.

It trains a tiny model until it is told to stop.  Each round is a call of `fit` of one Brain that
lasts, an evaluation, and a Brain of its own that ends with the round.
"""

from __future__ import annotations

import gc
import itertools
import logging
import shutil
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

from brain_ckpt import Checkpointer
from brain_core import Brain, Stage, TrainingStopped
from chaos.soak.status import SAVE_FOLDER, TRAINING_STATUS_FILE, StatusFile

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["make_model"]

_SHORT_FOLDER = "short"
_ROWS, _VALID_ROWS, _BATCH_SIZE = 64, 16, 4
_EPOCHS = 2
_INTERVAL_STEPS = 5
_LEAKED_FLOATS = 1 << 20  # four megabytes

_leaked: list[torch.Tensor | IO[bytes]] = []  # an attribute of the Brain would be saved


def make_model() -> torch.nn.Module:
    """Return the model."""
    return torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2))


class SoakBrain(Brain):
    """Saves after each validation, keeps the newest two and the best, and counts its steps."""

    count_step: Callable[[], None]
    leak = "none"

    def compute_forward(self, batch: Any, stage: Stage) -> torch.Tensor:
        """Return predictions."""
        del stage
        prediction: torch.Tensor = self.modules.model(batch[0])
        return prediction

    def compute_objectives(self, predictions: torch.Tensor, batch: Any, stage: Stage) -> Any:
        """Return the mean squared error."""
        del stage
        return torch.nn.functional.mse_loss(predictions, batch[1])

    def on_fit_batch_end(self, batch: Any, outputs: Any, loss: Any, should_step: bool) -> None:
        """Count a step."""
        del batch, outputs, loss, should_step
        self.count_step()

    def on_stage_end(self, stage: Stage, stage_loss: float, epoch: int | None = None) -> None:
        """Save after validation; leak what the command asked for."""
        del epoch
        if stage is not Stage.VALID:
            return
        assert self.checkpointer is not None
        self.checkpointer.save_and_keep_only(
            {"loss": stage_loss}, num_to_keep=2, min_keys=["loss"], verbosity=logging.DEBUG
        )
        if self.leak == "tensors":
            _leaked.append(torch.ones(_LEAKED_FLOATS))
        elif self.leak == "files":
            _leaked.append(open(__file__, "rb"))  # noqa: SIM115 - never closed on purpose


def _make_brain(folder: Path, status: StatusFile, leak: str) -> SoakBrain:
    model = make_model()
    brain = SoakBrain(
        {"model": model},
        lambda parameters: torch.optim.Adam(parameters, lr=0.001),
        run_opts={"device": "cpu", "ckpt_interval_steps": _INTERVAL_STEPS, "noprogressbar": True},
        checkpointer=Checkpointer(folder, {"model": model}),
    )
    brain.count_step, brain.leak = (lambda: status.count("steps")), leak
    return brain


def _data(rows: int) -> torch.utils.data.Dataset[Any]:
    generator = torch.Generator().manual_seed(rows)
    inputs, targets = (torch.randn(rows, width, generator=generator) for width in (8, 2))
    return torch.utils.data.TensorDataset(inputs, targets)


def _fit(brain: SoakBrain, first_epoch: int, *, asynchronous: bool) -> None:
    assert brain.checkpointer is not None
    brain.checkpointer.asynchronous = asynchronous
    brain.fit(
        range(first_epoch, first_epoch + _EPOCHS),
        _data(_ROWS),
        _data(_VALID_ROWS),
        train_loader_kwargs={"batch_size": _BATCH_SIZE, "shuffle": True, "num_workers": 2},
        valid_loader_kwargs={"batch_size": _BATCH_SIZE},
    )


def _train(folder: Path, interval_s: float, leak: str) -> None:
    status = StatusFile(folder / TRAINING_STATUS_FILE, interval_s)
    brain = _make_brain(folder / SAVE_FOLDER, status, leak)
    for number in itertools.count():
        _fit(brain, 1 + number * _EPOCHS, asynchronous=number % 2 == 1)
        brain.evaluate(_data(_VALID_ROWS), min_key="loss")
        short = _make_brain(folder / _SHORT_FOLDER, status, "none")
        _fit(short, 1, asynchronous=number % 2 == 0)
        del short
        shutil.rmtree(folder / _SHORT_FOLDER)
        if number == 0:
            gc.collect()
            gc.freeze()  # from now on only objects that later rounds make are counted
        status.count("rounds")


def main(arguments: list[str]) -> None:
    """Train until SIGTERM."""
    folder, interval_s, leak = arguments
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(5)
    try:
        _train(Path(folder), float(interval_s), leak)
    except TrainingStopped:
        return


if __name__ == "__main__":
    main(sys.argv[1:])
