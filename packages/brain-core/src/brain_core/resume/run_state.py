"""The progress of a run, as far as no module or optimizer holds it."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from brain_ckpt import mark_as_loader, mark_as_saver, register_checkpoint_hooks
from brain_core.loop.running_mean import LossMean
from brain_core.loop.train_step import TrainStep
from brain_core.resume.attributes import AttributeState
from brain_core.resume.rank_state import RankState
from brain_core.resume.setup_state import SetupState
from brain_dist import get_world_size, if_main_process, sum_over_ranks

if TYPE_CHECKING:
    from collections.abc import Callable

    from brain_core.loop.epoch_pass import EpochPass
    from brain_core.options.run_options import RunOptions
    from brain_core.resume.elastic import StepSize
    from brain_core.resume.next_fit import TensorCopies

__all__ = ["Progress", "RunState"]

logger = logging.getLogger(__name__)

StartsFrom = Literal["checkpoint", "memory", "evaluated modules"]


@dataclass(kw_only=True)
class Progress:
    """How far a training has come, counted by consumed batches, not by prefetched ones.

    Attributes
    ----------
    step : int
        Batches of the current epoch.
    optimizer_step : int
        Accumulation windows since training began.
    epoch : int, optional
        The current epoch, or the last one.
    world_size : int
        Ranks that each processed ``step`` batches.
    loss_total, loss_count : float, int
        Sum and number of the epoch's finite losses, over all ranks.
    nonfinite_count : int
        Batches of the epoch with a non-finite loss or gradient.
    avg_train_loss : float
        Mean of rank 0's losses. SpeechBrain reads this one.
    micro_batches_per_step : int, optional
        Batches of all ranks to an optimizer step; None where the checkpoint does not say.
    grad_accumulation_factor : int, optional
        The option that the run was started with.
    window_batches : int
        Batches of an incomplete accumulation window; their gradients are not saved.
    fit : int
        Which call of `Brain.fit` this is, counted from 1.
    epochs_begun : int, optional
        Epochs that this call has begun; None where the checkpoint does not say.
    steps_before_fit : int
        Accumulation windows of earlier calls of `Brain.fit`.
    """

    step: int = 0
    optimizer_step: int = 0
    epoch: int | None = None
    world_size: int = 1
    loss_total: float = 0.0
    loss_count: int = 0
    nonfinite_count: int = 0
    avg_train_loss: float = 0.0
    micro_batches_per_step: int | None = None
    grad_accumulation_factor: int | None = None
    window_batches: int = 0
    fit: int = 1
    epochs_begun: int | None = None
    steps_before_fit: int = 0

    def to_yaml(self) -> str:
        """Return SpeechBrain's format, with additional keys that it ignores."""
        import yaml  # where a checkpoint is written or read, not where this is imported

        return yaml.safe_dump(asdict(self))

    @classmethod
    def from_yaml(cls, text: str) -> Progress:
        """Read what `to_yaml` or SpeechBrain wrote."""
        import yaml  # as above

        saved: dict[str, Any] = yaml.safe_load(text)
        saved.setdefault("optimizer_step", saved["step"])  # SpeechBrain before 1.0 had none
        if "loss_count" not in saved:
            saved["loss_count"] = saved["step"]
            saved["loss_total"] = saved["avg_train_loss"] * saved["step"]
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in saved.items() if key in known})


@register_checkpoint_hooks
class RunState:
    """The progress of `Brain.fit`: the recoverable ``brain`` of a checkpoint.

    Parameters
    ----------
    step_size : StepSize
        Keeps the micro-batches of an optimizer step on another number of ranks.
    options : RunOptions
        Of the run.
    environment : callable
        Returns the software and hardware of this rank, by name.

    Attributes
    ----------
    step, optimizer_step, nonfinite_count : int
        As in `Brain`.
    batch_of_last_step : int
        The batch behind which the optimizers stepped last.
    grad_accumulation_factor : int
        Batches of this rank to an optimizer step.
    fit : int
        Which call of `Brain.fit` this is, counted from 1. One that an exception ended is not over:
        the next call has the same number.
    starts_from : str
        What the next call starts from: a checkpoint, the state in memory, or that state with other
        modules than the trained ones, which an evaluation has loaded.
    trained_tensors : TensorCopies or None
        The modules before an evaluation loaded others, where no checkpoint holds them.
    is_skipped : bool
        Whether this call was completed before the checkpoint was saved.
    epoch : int or None
        The current epoch.
    epochs_begun : int or None
        Epochs that this call has begun, those of the checkpoint included.
    steps_before_fit : int
        Accumulation windows of earlier calls.
    resumes_epoch : bool
        Whether the next epoch continues at a position inside it.
    unfinished_window : int
        Batches of a window whose gradients the loaded checkpoint did not hold.
    keeps_average : bool
        Whether the recipe computes the average loss itself, so that its value is restored.
    mean : LossMean
        The epoch's mean loss on this rank.
    rank_state : RankState
        What each rank saves for itself.
    setup : SetupState
        What the script has set up.
    train_step : TrainStep
        The accumulation window.
    epoch_pass : EpochPass or None
        The training pass, while one runs.
    """

    def __init__(
        self,
        step_size: StepSize,
        options: RunOptions,
        environment: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._step_size = step_size
        self._options = options
        self.step = self.optimizer_step = self.nonfinite_count = 0
        self.batch_of_last_step = 0
        self.grad_accumulation_factor = options.grad_accumulation_factor
        self.keeps_average = False
        self.train_step = TrainStep()
        self.setup = SetupState()
        self.epoch_pass: EpochPass | None = None
        self.fit = 1
        self.starts_from: StartsFrom = "checkpoint"
        self.trained_tensors: TensorCopies | None = None
        self.has_seeded_ranks = False
        self.batches_trained = self.batches_saved = 0
        self._rng_after_fits: dict[int, dict[str, Any]] = {}
        self._sums_of_all_ranks: list[float] = [0.0, 0.0]
        self._environment = environment
        self.begin_fit()

    def begin_fit(self) -> None:
        """Forget what an earlier call of fit has loaded."""
        self.is_skipped = False
        self.epoch: int | None = None
        self.epochs_begun: int | None = 0
        self.steps_before_fit = self.optimizer_step
        self.resumes_epoch = False
        self.unfinished_window = 0
        self.mean = LossMean()
        self.rank_state = RankState(
            lambda: self.mean,
            self._environment,
            self._rng_after_fits,
            AttributeState(self._options.recover_attributes),
        )

    def end_fit(self) -> None:
        """Count a call of fit that no exception has ended."""
        if self.is_skipped:
            self.rank_state.restore_rng_after(self.fit)
            self.setup.restore_after(self.fit)
        else:
            self.rank_state.fit_ended(self.fit)
            self.setup.fit_ended(self.fit)
            self.starts_from = "memory"
        self.fit += 1

    @property
    def is_saved(self) -> bool:
        """Whether a checkpoint was saved or loaded since the last batch; rank 0 knows."""
        return self.batches_saved == self.batches_trained

    def nested(self) -> RunState:
        """Return the state of a fit that a hook of this one calls."""
        state = RunState(self._step_size, self._options)
        state.optimizer_step = self.optimizer_step
        state.grad_accumulation_factor = self.grad_accumulation_factor
        state.keeps_average = self.keeps_average
        return state

    def begin_epoch(self, epoch: int) -> None:
        """Enter an epoch, at its first batch or where the checkpoint left off."""
        self.epoch = epoch
        if not self.resumes_epoch and self.epochs_begun is not None:
            self.epochs_begun += 1
        self.train_step.reset()  # an error may have left something there
        losses = self.rank_state.pop_losses()
        if not self.resumes_epoch:
            self.step = self.nonfinite_count = 0
            self.mean = LossMean()
        elif losses is not None:
            self.mean = LossMean(losses.total, losses.count, self.mean.assigned)
        self.resumes_epoch = False

    def end_epoch(self) -> None:
        """Begin the counts of the next epoch."""
        self.step = 0
        self.mean = LossMean()

    def restart_epoch(self) -> None:
        """Begin an interrupted epoch at its first batch: its position is of no use."""
        self.end_epoch()
        self.nonfinite_count = 0
        self.rank_state.pop_losses()

    def sum_losses(self) -> None:
        """Sum the epoch's losses over all ranks for the next save; every rank calls it."""
        self._sums_of_all_ranks = sum_over_ranks([self.mean.total, self.mean.count])

    @mark_as_saver
    def save(self, path: str | Path) -> None:
        """Write the progress in SpeechBrain's format."""
        alone = get_world_size() == 1
        total, count = (self.mean.total, self.mean.count) if alone else self._sums_of_all_ranks
        # A recipe's own step may have more batches than a window.
        inside = self.train_step.batches % self.grad_accumulation_factor
        if inside:
            logger.warning(
                "A checkpoint is saved inside an accumulation window: it does not hold the "
                "gradients of the window's first %d batches. Save where should_step is true.",
                inside,
            )
        progress = Progress(
            step=self.step,
            optimizer_step=self.optimizer_step,
            epoch=self.epoch,
            world_size=get_world_size(),
            loss_total=total,
            loss_count=int(count),
            nonfinite_count=self.nonfinite_count + self.train_step.is_uncounted,
            avg_train_loss=float(self.mean.mean()),
            micro_batches_per_step=self._step_size.to_save(self.grad_accumulation_factor),
            grad_accumulation_factor=self._options.grad_accumulation_factor,
            window_batches=inside,
            fit=self.fit,
            epochs_begun=self.epochs_begun,
            steps_before_fit=self.steps_before_fit,
        )
        self.batches_saved = self.batches_trained
        Path(path).write_text(progress.to_yaml(), encoding="utf-8")

    @mark_as_loader
    def recover(self, path: str | Path, end_of_epoch: bool) -> None:
        """Continue from the progress that a checkpoint holds."""
        progress = Progress.from_yaml(Path(path).read_text(encoding="utf-8"))
        factor = self._step_size.recover(progress, elastic=self._options.elastic)
        if factor is not None:
            self.grad_accumulation_factor = factor
        self.optimizer_step = progress.optimizer_step
        self.batches_saved = self.batches_trained
        if progress.fit < self.fit:
            self.steps_before_fit = self.optimizer_step
            return  # this call begins after the one that was saved
        self.steps_before_fit = progress.steps_before_fit
        self.epoch = progress.epoch
        self.epochs_begun = progress.epochs_begun
        self.resumes_epoch = not end_of_epoch
        self.unfinished_window = progress.window_batches
        self.end_epoch()
        if end_of_epoch:
            return
        self.step = self._step_size.batches_done(progress, self.grad_accumulation_factor)
        self.nonfinite_count = progress.nonfinite_count
        if if_main_process():  # on as many ranks as before, each has its own in its RankState
            self.mean = LossMean(progress.loss_total, progress.loss_count)
        if self.keeps_average:
            self.mean.assign(progress.avg_train_loss)
