"""What an evaluation takes from the checkpoint of the best model: not the training's progress."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from brain_data import LoopedLoader

from ._epochs import EpochCounter
from ._resume import RankState
from ._train_logger import TrainLogger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from brain_ckpt import Checkpoint, Checkpointer

__all__ = ["ShownEpochs", "is_of_the_model"]

_PROGRESS = (
    DataLoader,
    EpochCounter,
    LoopedLoader,
    RankState,
    TrainLogger,
    torch.amp.GradScaler,
    torch.optim.Optimizer,
    torch.optim.lr_scheduler.LRScheduler,
)
_PROGRESS_MODULES = (  # recognised without being imported
    "speechbrain.dataio.dataloader",
    "speechbrain.nnet.schedulers",
    "speechbrain.utils.epoch_loop",
)


def is_of_the_model(obj: Any) -> bool:
    """Whether a recoverable belongs to the model, as a module or an average of weights does."""
    if isinstance(obj, torch.nn.Module):
        return True
    if isinstance(obj, _PROGRESS) or hasattr(obj, "fit_batch"):  # a Brain
        return False
    return not type(obj).__module__.startswith(_PROGRESS_MODULES)


class ShownEpochs:
    """Lets epoch counters show, during an evaluation, which epoch's model is evaluated."""

    def __init__(self) -> None:
        self._until_the_end: ExitStack | None = None

    @contextmanager
    def during_evaluation(self) -> Iterator[None]:
        """Put the counters back when the evaluation ends."""
        with ExitStack() as stack:
            self._until_the_end = stack
            try:
                yield
            finally:
                self._until_the_end = None

    def show(self, checkpointer: Checkpointer, checkpoint: Checkpoint | None) -> None:
        """Let the counters show the checkpoint's epoch, if an evaluation is under way."""
        if self._until_the_end is None or checkpoint is None:
            return
        end_of_epoch = bool(checkpoint.meta.get("end-of-epoch", True))
        for name, obj in checkpointer.recoverables.items():
            if isinstance(obj, EpochCounter) and name in checkpoint.paramfiles:
                showing = obj.showing_epoch_of(
                    checkpoint.paramfiles[name], end_of_epoch=end_of_epoch
                )
                self._until_the_end.enter_context(showing)
