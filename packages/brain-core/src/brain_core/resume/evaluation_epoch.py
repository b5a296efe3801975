"""What an evaluation loads from the best checkpoint: the model, and the epoch to show."""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from brain_core.callbacks.base import Callback
from brain_core.epochs import EpochCounter
from brain_core.loggers.base import TrainLogger
from brain_core.resume.rank_state import RankState
from brain_core.resume.run_state import Progress, RunState
from brain_data import LoopedLoader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from brain_ckpt import Checkpoint, Checkpointer

__all__ = ["EvaluationEpoch", "is_of_the_model", "log_evaluated"]

logger = logging.getLogger(__name__)

_PROGRESS = (
    DataLoader,
    EpochCounter,
    LoopedLoader,
    RankState,
    RunState,
    TrainLogger,
    torch.amp.GradScaler,
    torch.optim.Optimizer,
    torch.optim.lr_scheduler.LRScheduler,
)
_PROGRESS_MODULES = (  # recognized by name, without an import
    "speechbrain.dataio.dataloader",
    "speechbrain.nnet.schedulers",
    "speechbrain.utils.epoch_loop",
)


def is_of_the_model(obj: Any) -> bool:
    """Return whether a recoverable belongs to the model, as modules and averages of weights do."""
    if isinstance(obj, torch.nn.Module):
        return True
    if isinstance(obj, Callback):
        return obj.belongs_to_model
    if isinstance(obj, _PROGRESS) or hasattr(obj, "fit_batch"):  # a Brain
        return False
    return not type(obj).__module__.startswith(_PROGRESS_MODULES)


def log_evaluated(checkpoint: Checkpoint | None, checkpointer: Checkpointer, run: RunState) -> None:
    """Log whose weights are evaluated, as a warning where there is no checkpoint."""
    if checkpoint is None:
        logger.warning(
            "No checkpoint in %s: the weights in memory are evaluated.",
            checkpointer.checkpoints_dir,
        )
        return
    path = checkpoint.paramfiles.get("brain")
    if path is None or not path.exists():
        return
    progress = Progress.from_yaml(path.read_text(encoding="utf-8"))
    newest = run.optimizer_step
    behind = f" (training is at step {newest})" if progress.optimizer_step < newest else ""
    logger.info(
        "Evaluating %s: epoch %s, optimizer step %d%s.",
        checkpoint.path.name,
        progress.epoch,
        progress.optimizer_step,
        behind,
    )


class EvaluationEpoch:
    """Sets epoch counters, during an evaluation, to the epoch of the model that is evaluated."""

    def __init__(self) -> None:
        self._evaluation: ExitStack | None = None

    @contextmanager
    def during_evaluation(self) -> Iterator[None]:
        """Restore the counters when the evaluation ends."""
        with ExitStack() as stack:
            self._evaluation = stack
            try:
                yield
            finally:
                self._evaluation = None

    def show(self, checkpointer: Checkpointer, checkpoint: Checkpoint | None) -> None:
        """Set the counters to the checkpoint's epoch, inside `during_evaluation`."""
        if self._evaluation is None or checkpoint is None:
            return
        end_of_epoch = bool(checkpoint.meta.get("end-of-epoch", True))
        for name, obj in checkpointer.recoverables.items():
            if isinstance(obj, EpochCounter) and name in checkpoint.paramfiles:
                showing = obj.showing_epoch_of(
                    checkpoint.paramfiles[name], end_of_epoch=end_of_epoch
                )
                self._evaluation.enter_context(showing)
