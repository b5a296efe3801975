"""How a run is saved, stopped and gone on from."""

from __future__ import annotations

import logging
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_ckpt import mark_as_loader, mark_as_saver
from brain_dist import get_world_size, if_main_process, sum_over_ranks

from ._borders import SaveSchedule, TrainingStopped, WindowBorder
from ._losses import LossMean
from ._passes import Passes
from ._resume import Progress
from ._setup import redirect_to_temporary
from ._stage import Stage
from ._train_logger import TrainLogger

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from brain_ckpt import Checkpoint, Checkpointer
    from brain_dist import StopSignal

    from ._options import RunOptions

__all__ = ["CheckpointedPasses"]

logger = logging.getLogger(__name__)

INTRA_EPOCH_CKPT_FLAG = "brain_intra_epoch_ckpt"  # SpeechBrain's name for it in CKPT.yaml


class CheckpointedPasses(Passes):
    """The part of `Brain` that puts its progress into checkpoints, and takes it from there."""

    checkpointer: Checkpointer | None
    hparams: Any
    run_options: RunOptions

    _stop: StopSignal
    _losses_of_all_ranks: Sequence[float] = (0.0, 0)  # the epoch's sum and count when it is saved
    _epoch: int | None
    _epochs_done: int | None  # up to which a plain iterable of epochs is skipped

    def stop(self, reason: str = "brain.stop() was called") -> None:
        """Ask `fit` to save and leave at the next border of an accumulation window.

        Parameters
        ----------
        reason : str
            For the log, and for whoever catches `TrainingStopped`.
        """
        self._stop.request(reason)

    @mark_as_saver
    def _save(self, path: str | Path) -> None:
        alone = (self._train_mean.total, self._train_mean.count)
        total, count = self._losses_of_all_ranks if get_world_size() > 1 else alone
        progress = Progress(
            step=self.step,
            optimizer_step=self.optimizer_step,
            epoch=self._epoch,
            world_size=get_world_size(),
            loss_total=total,
            loss_count=int(count),
            nonfinite_count=self.nonfinite_count,
            avg_train_loss=float(self.avg_train_loss),
        )
        Path(path).write_text(progress.to_yaml(), encoding="utf-8")

    @mark_as_loader
    def _recover(self, path: str | Path, end_of_epoch: bool) -> None:
        progress = Progress.from_yaml(Path(path).read_text(encoding="utf-8"))
        self.optimizer_step = progress.optimizer_step
        self._epoch = progress.epoch
        self._resumes_epoch = not end_of_epoch
        if progress.epoch is not None:
            self._epochs_done = progress.epoch - (not end_of_epoch)
        if end_of_epoch:
            self._forget_epoch()
            return
        self.step = progress.step * progress.world_size // get_world_size()
        self.nonfinite_count = progress.nonfinite_count
        if if_main_process():  # on as many ranks as before, each has its own in its RankState
            self._train_mean = LossMean(progress.loss_total, progress.loss_count)
        own = self._overrides("update_average")
        self._own_average = progress.avg_train_loss if own else None

    def _join_checkpointer(self, checkpointer: Checkpointer) -> None:
        options = self.run_options
        if options.debug and not options.debug_persistently:
            redirect_to_temporary(checkpointer)
        checkpointer.add_recoverable("brain", self)
        if self.scaler.is_enabled():
            checkpointer.add_recoverable("scaler", self.scaler, optional_load=True)

    def _add_recoverables_of_fit(self, train_set: Any) -> None:
        """Add what `fit` needs to go on exactly and the recipe did not think of."""
        if self.checkpointer is None:
            return
        known = {id(obj) for obj in self.checkpointer.recoverables.values()}
        mine = {"rank_state": self._rank_state, f"dataloader-{Stage.TRAIN.name}": train_set}
        mine |= {k: v for k, v in vars(self.hparams).items() if isinstance(v, TrainLogger)}
        for name, obj in mine.items():
            if id(obj) not in known and hasattr(obj, "state_dict"):
                self.checkpointer.add_recoverable(
                    name, obj, optional_load=True, per_rank=obj is self._rank_state
                )

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Save at borders when it is due, and leave there when asked to.

        Signals are listened to where there is a checkpointer to save with; `stop` always works.
        """
        options = self.run_options
        schedule = SaveSchedule(options.ckpt_interval_minutes, options.ckpt_interval_steps)
        self._border = WindowBorder(schedule, self._stop, self._save_intra_epoch_ckpt, self._poll)
        try:
            with self._stop if self.checkpointer is not None else nullcontext():
                yield
                self._publish_last()
        except TrainingStopped:
            self._publish_last()
            raise
        finally:
            self._border.close()
            self._border = None
            if self.profiler is not None:
                self.profiler.stop()

    def _publish_last(self) -> None:
        """Wait for a checkpoint that is being written, and let go of the directory."""
        if self.checkpointer is not None:
            self.checkpointer.close()

    def _poll(self) -> None:
        if self.checkpointer is not None:
            self.checkpointer.poll()

    def _save_intra_epoch_ckpt(self) -> None:
        if self.checkpointer is None:
            return
        self._losses_of_all_ranks = sum_over_ranks([self._train_mean.total, self._train_mean.count])
        self.checkpointer.save_and_keep_only(
            meta={INTRA_EPOCH_CKPT_FLAG: True},
            end_of_epoch=False,
            num_to_keep=1,
            ckpt_predicate=lambda c: INTRA_EPOCH_CKPT_FLAG in c.meta,
            verbosity=logging.DEBUG,
        )

    def _report_recovery(self, checkpoint: Checkpoint) -> None:
        where = f"epoch {self._epoch}, " if self._epoch is not None else ""
        place = f"batch {self.step} of it" if self._resumes_epoch else "after its end"
        logger.info(
            "Going on from %s: %s%s, optimizer step %d.",
            Path(checkpoint.path).name,
            where,
            place,
            self.optimizer_step,
        )
