"""One pass over the data: an epoch's training, its validation, a test."""

from __future__ import annotations

import logging
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from brain_dist import get_world_size, local_forward

from ._batch_steps import BatchSteps
from ._batches import Batches
from ._fillers import without_gradients
from ._loaders import batches_of_every_rank, needs_replay, share_of
from ._losses import LossMean
from ._progress import ProgressBar
from ._stage import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._borders import WindowBorder
    from ._profiling import StepProfiler
    from ._resume import RankState

__all__ = ["Passes"]

logger = logging.getLogger(__name__)


class Passes(BatchSteps):
    """The part of `Brain` that goes through a loader from where it was left to its end."""

    debug: bool
    debug_batches: int
    optimizer_step_limit: int | None
    tqdm_barcolor: dict[str, str]
    shard_evaluation: bool
    train_sampler: Any
    profiler: StepProfiler | None

    _rank_state: RankState
    _train_mean: LossMean
    _own_average: float | None  # what a recipe has put in place of that mean
    _border: WindowBorder | None = None
    _test_border: WindowBorder | None = None
    _validates = False  # whether a validation follows an epoch's training
    _is_inner_fit = False  # called by a hook of another fit
    _has_own_sampler = False  # the training data's order is the recipe's
    _resumes_epoch = False  # the next epoch goes on within, from a checkpoint

    @property
    def avg_train_loss(self) -> float:
        """Mean of the epoch's finite losses on this rank; a recipe may put its own in its place."""
        return self._train_mean.mean() if self._own_average is None else self._own_average

    @avg_train_loss.setter
    def avg_train_loss(self, value: float) -> None:
        self._own_average = value

    def _fit_train(self, train_set: Any, epoch: int, enable: bool) -> None:
        self.on_stage_start(Stage.TRAIN, epoch)
        self.modules.train()
        self.zero_grad()
        self._begin_epoch(train_set, epoch)
        with self._training_pass(train_set, enable=enable) as (batches, bar):
            for batch in batches:
                self.step += 1
                self._train_on(batch, batches)
                bar.step()
                if self.profiler is not None:
                    self.profiler.step()
                if self._border is not None:
                    self._border.schedule.steps_done += 1
                    if self._window_ends():
                        self._border.passed()
                if self._reached_step_limit():
                    break
            if self._border is not None:
                self._border.data_ended(validates=self._validates)
        self.zero_grad(set_to_none=True)
        self.on_stage_end(Stage.TRAIN, self._train_loss_of_all_ranks(), epoch)
        self._forget_epoch()

    def _train_on(self, batch: Any, batches: Batches[Any]) -> None:
        self.is_filler = batches.is_filler
        self._window_fillers += batches.fillers
        if self.is_filler:
            with without_gradients(self.modules):
                self.fit_batch(batch)
        else:
            self._note_train_loss(self.fit_batch(batch))

    def _fit_valid(self, valid_set: Any, epoch: int, enable: bool) -> None:
        if valid_set is None:
            return
        self.on_stage_start(Stage.VALID, epoch)
        with torch.no_grad():
            loss = self._evaluate_all(valid_set, Stage.VALID, enable=enable)
            self.on_stage_end(Stage.VALID, loss, epoch)

    def _evaluate_all(self, batches: Any, stage: Stage, *, enable: bool) -> float:
        """Evaluate every batch and return the mean loss; ``self.step`` counts, then goes back."""
        trained, self.step = self.step, 0
        average, mean = 0.0, LossMean()
        own = self._overrides("update_average")
        shards = self.shard_evaluation and get_world_size() > 1
        whole_on_each_rank = local_forward(self.modules.values()) if shards else nullcontext()
        batches = share_of(batches) if shards else batches
        border = self._evaluation_border(stage)
        chances = 0 if border is None else batches_of_every_rank(batches)
        bar = ProgressBar(
            enable=enable,
            batches=batches,
            colour=self.tqdm_barcolor[stage.name.lower()],
            figures=lambda: {"loss": f"{average if own else mean.mean():.4g}"},
        )
        left = Batches(batches, self.debug_batches if self.debug else None)
        try:
            with evaluating(self.modules), whole_on_each_rank, bar:
                for batch in left:
                    self.step += 1
                    loss = self.evaluate_batch(batch, stage=stage)
                    if own:
                        average = self.update_average(loss, average)
                    else:
                        mean.add(loss)
                    bar.step()
                    if border is not None and self.step <= chances:
                        border.passed_in_evaluation()
        finally:
            self.step = trained
            left.close()
        return average if own else mean.mean_over_ranks()

    def _evaluation_border(self, stage: Stage) -> WindowBorder | None:
        """Where an evaluation may be left: where all that there is to save was saved before."""
        if stage is Stage.TEST:
            return self._test_border
        border = self._border
        return border if border is not None and border.schedule.is_on else None

    def _note_train_loss(self, loss: Any) -> None:
        if self._overrides("update_average"):
            self.avg_train_loss = self.update_average(loss, self.avg_train_loss)
        else:
            self._train_mean.add(loss)

    def _train_loss_of_all_ranks(self) -> float:
        return (
            self._train_mean.mean_over_ranks() if self._own_average is None else self._own_average
        )

    def _forget_epoch(self) -> None:
        self.step = 0
        self._train_mean = LossMean()
        self._own_average = None

    def _reached_step_limit(self) -> bool:
        limit = self.optimizer_step_limit
        return limit is not None and self.optimizer_step >= limit

    def _begin_epoch(self, train_set: Any, epoch: int) -> None:
        self._window_batches = self._window_fillers = 0  # what an error left there is zeroed
        losses = self._rank_state.take_losses()
        if not self._resumes_epoch:
            self._forget_epoch()
            self.nonfinite_count = 0
        elif losses is not None:
            self._train_mean = losses
        self._resumes_epoch = False
        if self._is_inner_fit and self._has_own_sampler:
            return  # its sampler counts the outer epochs; these are others
        for part in (train_set, self.train_sampler):
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)

    @contextmanager
    def _training_pass(
        self, train_set: Any, *, enable: bool
    ) -> Iterator[tuple[Batches[Any], ProgressBar]]:
        """Open the data where it was left, with the random state of that moment."""
        if self.step == 0:
            self._rank_state.restore_rng()  # saved between epochs, before the iterator's draw
        limit = max(0, self.debug_batches - self.step) if self.debug else None
        batches = Batches(train_set, 0 if self._reached_step_limit() else limit)
        if self.step and needs_replay(train_set):
            logger.info("This loader cannot seek: its first %d batches are read again.", self.step)
            batches.skip(self.step)
        self._rank_state.restore_rng()  # saved within an epoch, after it
        self._batches = batches
        bar = ProgressBar(
            enable=enable,
            batches=train_set,
            initial=self.step,
            colour=self.tqdm_barcolor["train"],
            figures=lambda: {"train_loss": f"{self.avg_train_loss:.4g}"},
        )
        try:
            with bar:
                yield batches, bar
        finally:
            self._batches = None
            self.is_filler = False
            batches.close()


@contextmanager
def evaluating(modules: torch.nn.Module) -> Iterator[None]:
    """Put modules into evaluation mode, and if an exception passes, back as they were."""
    were_training = [module for module in modules.modules() if module.training]
    modules.eval()
    try:
        yield
    except BaseException:
        for module in were_training:
            module.training = True
        raise
