"""What `Brain` does where a fit or a pass begins and ends: it calls the hooks and the callbacks."""

from __future__ import annotations

import logging
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from brain_core.epochs import count_epochs
from brain_core.hooks import BrainHooks
from brain_core.loop.fit_display import FitDisplay
from brain_core.loop.progress_bar import BarOptions
from brain_core.loop.step_count import steps_of_fit
from brain_core.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import torch

    from brain_core.callbacks.runner import CallbackRunner
    from brain_core.fit_state import FitState
    from brain_core.resume.run_state import RunState

__all__ = ["StageMethods"]

logger = logging.getLogger(__name__)


class StageMethods(BrainHooks):
    """The methods of `Brain` at the beginning and the end of a fit and of its passes."""

    if TYPE_CHECKING:  # set by Brain
        optimizer_step_limit: int | None
        debug: bool
        debug_epochs: int
        tqdm_barcolor: dict[str, str]
        _callbacks: CallbackRunner
        _fit_state: FitState
        _run: RunState
        stage_stats: dict[str, Any]

        def _reached_step_limit(self) -> bool: ...

        def _batch_limit(self) -> int | None: ...

        def _all_optimizers(self) -> list[torch.optim.Optimizer]: ...

        def _train_batch(self, batch: Any, epoch_pass: Any) -> torch.Tensor | None: ...

    @property
    def total_optimizer_steps(self) -> int | None:
        """The optimizer steps of the whole `fit`, those before a restart included.

        Known once `fit` calls `on_fit_start` of the callbacks. Epochs, accumulation, ranks and
        ``optimizer_step_limit`` are counted. None where the training set or the epochs have no
        length and there is no limit. Early stopping may end the fit before.
        """
        return self._fit_state.total_steps

    @property
    def total_epochs(self) -> int | None:
        """The epochs of the whole `fit`, as `total_optimizer_steps`; None for an iterator."""
        return self._fit_state.total_epochs

    @property
    def current_epoch(self) -> int | None:
        """The epoch that is trained or was trained last; None before the first."""
        return self._run.epoch

    def end_fit_after_epoch(self) -> None:
        """Let `fit` end after the present epoch as after its last one; every rank calls it.

        In contrast to `stop`, the script continues after `fit`.
        """
        self._fit_state.ends_early = True

    def _end_epoch(self, epoch: int) -> bool:
        """Show an epoch; return whether a limit or `end_fit_after_epoch` ends the fit after it."""
        if self._fit_state.display is not None:
            self._fit_state.display.end_epoch(epoch)
        if self._reached_step_limit():
            logger.info("Reached the limit of %d optimizer steps.", self._run.optimizer_step)
            return True
        return self._fit_state.ends_early

    def _count_steps(self, epochs: Any, batches: int | None) -> None:
        """Compute `total_optimizer_steps`, once the run is restored."""
        run, limit = self._run, self.optimizer_step_limit
        total_epochs = count_epochs(epochs, run.epochs_begun, **self._position(epochs))
        self._fit_state.total_epochs = total_epochs
        self._fit_state.total_steps = steps_of_fit(
            batches,
            total_epochs,
            run.grad_accumulation_factor,
            batch_limit=self._batch_limit(),
            step_limit=None if limit is None else max(0, limit - run.steps_before_fit),
        )

    def _position(self, epochs: Iterable[int]) -> dict[str, Any]:
        """Return the arguments of `epochs_left`: a counter that was recovered knows them itself."""
        recovery, run = self._fit_state.recovery, self._run
        is_recovered = recovery is not None and recovery.restores(epochs)
        return {
            "last": None if is_recovered else run.epoch,
            "repeats_last": run.resumes_epoch,
            "at_most": self.debug_epochs if self.debug and self.debug_epochs > 0 else None,
        }

    @contextmanager
    def _during_fit(self, *, shows_bars: bool) -> Iterator[None]:
        """Call the callbacks where a fit begins and ends; a nested fit has none, and no display."""
        state, run = self._fit_state, self._run
        if state.is_nested or run.is_skipped:
            yield
            return
        if shows_bars:
            state.display = FitDisplay(
                total_steps=state.total_steps,
                total_epochs=state.total_epochs,
                steps_done=lambda: run.optimizer_step - run.steps_before_fit,
                epochs_begun=lambda: run.epochs_begun,
            )
        with self._callbacks.during_fit(is_resumed=self._run.epochs_begun != 0):
            yield

    def _bar_options(self, stage: Stage, epoch: int | None, *, enable: bool) -> BarOptions:
        """Return what the bar of a pass shows."""
        display = self._fit_state.display
        colour = self.tqdm_barcolor[stage.name.lower()]
        if display is None or stage is Stage.TEST:
            return BarOptions(enable=enable, colour=colour)

        def rate_and_time_left() -> dict[str, str]:
            groups = [group for made in self._all_optimizers() for group in made.param_groups]
            rates = [f"{float(group['lr']):.2e}" for group in groups if "lr" in group]
            return {**({"lr": rates[0]} if rates else {}), **display.time_left()}

        trains = stage is Stage.TRAIN
        return BarOptions(
            enable=enable,
            title=display.name_of(epoch) if trains else f"{display.name_of(epoch)}, valid",
            colour=colour,
            keep=False,  # the epoch's line stays
            figures=rate_and_time_left if trains else display.time_left,
        )

    def _begin_stage(self, stage: Stage, epoch: int | None) -> None:
        """Call `on_stage_start`; an epoch that it had begun before the stop goes on as it was."""
        self.stage_stats = {}
        if self._fit_state.display is not None:
            self._fit_state.display.begin_pass(stage)
        recovery = self._fit_state.recovery
        repeats = stage is Stage.TRAIN and self._run.resumes_epoch
        keeps_state = repeats and recovery is not None
        with recovery.resuming_epoch() if keeps_state and recovery is not None else nullcontext():
            self.on_stage_start(stage, epoch)
        if not (repeats or self._fit_state.is_nested):
            self._callbacks.on_stage_start(stage, epoch)

    def _end_stage(self, stage: Stage, loss: float, epoch: int | None) -> None:
        if not self._fit_state.is_nested:
            self.stage_stats.update(self._callbacks.stage_figures(stage))
        self.stage_stats["loss"] = loss
        if self._fit_state.display is not None:
            self._fit_state.display.end_pass(stage, loss)
        self.on_stage_end(stage, loss, epoch)
        if not self._fit_state.is_nested:
            self._callbacks.on_stage_end(stage, self.stage_stats, epoch)

    def _watch_batches(self) -> Callable[[Iterator[Any]], Iterator[Any]] | None:
        return None if self._fit_state.is_nested else self._callbacks.watcher_of_batches()

    def _train_batch_function(self) -> Callable[[Any, Any], torch.Tensor | None]:
        """Return what trains on a batch of an epoch: `_train_batch`, with callbacks if any."""
        if self._fit_state.is_nested:
            return self._train_batch
        run = self._run
        return self._callbacks.around_batch(
            self._train_batch,
            lambda: run.optimizer_step,
            lambda: run.train_step.was_taken,
            self._all_optimizers(),
        )
