"""What `Brain` does with one batch: train on it, evaluate it, step, guard against NaN."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from brain_core.hooks import BrainHooks
from brain_core.loop.gradients import drop_nonfinite_gradients
from brain_core.loop.padding_batches import without_gradients
from brain_core.loop.progress_bar import should_show
from brain_core.loop.running_mean import is_finite
from brain_core.loop.train_step import explain_loss, report_nonfinite
from brain_core.stage import Stage
from brain_dist import if_main_process, no_sync

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from brain_core.loop.epoch_pass import EpochPass
    from brain_core.modules.container import Modules
    from brain_core.resume.run_state import RunState

__all__ = ["BatchMethods"]

logger = logging.getLogger(__name__)


class BatchMethods(BrainHooks):
    """The methods of `Brain` that process one batch; a subclass may replace any."""

    if TYPE_CHECKING:  # set by Brain
        modules: Modules
        optimizers_dict: dict[str, torch.optim.Optimizer] | None
        scaler: torch.amp.GradScaler
        training_ctx: AbstractContextManager[Any]
        evaluation_ctx: AbstractContextManager[Any]
        max_grad_norm: float
        nonfinite_patience: int
        skip_nonfinite_grads: bool
        noprogressbar: bool
        debug: bool
        debug_batches: int
        optimizer_step_limit: int | None
        _run: RunState
        _overrides: frozenset[str]
        _looks_after_batch: bool

        def _after_hook(self) -> None: ...

    _nonfinite_losses = 0  # of the pass, skipped by update_average

    def fit_batch(self, batch: Any) -> torch.Tensor:
        """Train on one batch; override for several updates or optimizers of your own.

        Calls `on_fit_batch_start`, `compute_forward`, `compute_objectives`, `check_loss_isfinite`,
        `optimizers_step` when the accumulation window is full or the epoch's data ends, and
        `on_fit_batch_end`. An override only has to return a loss.

        Parameters
        ----------
        batch : object
            What the loader gave.

        Returns
        -------
        torch.Tensor
            The loss, detached, on its device: reading it here would wait for the device.

        Raises
        ------
        ValueError
            If the loss is no single number or has no gradient, or if losses or gradients were not
            finite more often than `nonfinite_patience` allows.
        """
        should_step = self._window_ends()
        self.on_fit_batch_start(batch, should_step)
        if self._looks_after_batch:
            self._after_hook()
        train_step = self._run.train_step
        train_step.begin_batch()
        with self.no_sync(not should_step):
            with self.training_ctx:
                outputs = self.compute_forward(batch, Stage.TRAIN)
                loss = self.compute_objectives(outputs, batch, Stage.TRAIN)
            try:
                train_step.backward(
                    self._scale_loss(loss, batch),
                    self.scaler,
                    self.check_loss_isfinite,
                    always_check="check_loss_isfinite" in self._overrides,
                )
            except (AttributeError, RuntimeError, TypeError, ValueError) as error:
                explain_loss(loss, error)
                raise
        if should_step:
            self.optimizers_step()
        self.on_fit_batch_end(batch, outputs, loss, should_step)
        return loss.detach()

    @torch.no_grad()
    def evaluate_batch(self, batch: Any, stage: Stage) -> torch.Tensor:
        """Evaluate one batch and return its loss, detached.

        Parameters
        ----------
        batch : object
            What the loader gave.
        stage : Stage
            `Stage.VALID` or `Stage.TEST`.
        """
        with self.evaluation_ctx:
            outputs = self.compute_forward(batch, stage=stage)
            loss = self.compute_objectives(outputs, batch, stage=stage)
        return loss.detach()

    def optimizers_step(self) -> None:
        """Step all active optimizers on the gradients of the window, then zero them.

        The gradients of a short last window are averaged over the batches that it has, of all
        ranks and without padding batches. Each optimizer's gradients, of all its parameter groups,
        are clipped by one norm. If any gradient is not finite, no optimizer steps, buffers that the
        window's forwards wrote (BatchNorm's statistics) are set back, and the window counts
        against `nonfinite_patience`. Where the device decides this by itself, for torch's fused
        optimizers on an accelerator, the window is counted at the next step.
        """
        optimizers = self._active_optimizers().values()
        if not optimizers:
            return
        train_step = self._run.train_step
        self._settle_step()
        weighted = "loss_weight" in self._overrides
        train_step.average(
            optimizers, self.scaler, self._run.grad_accumulation_factor, weighted=weighted
        )
        if self.skip_nonfinite_grads and not self.scaler.is_enabled():
            self.check_gradients()
        nonfinite = train_step.step(optimizers, self.scaler, self.max_grad_norm)
        self._run.batch_of_last_step = self._run.step
        if nonfinite is not None:
            self._count_nonfinite(nonfinite, self._run.step)
        self._run.optimizer_step += 1

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Zero the gradients of all active optimizers; ``set_to_none`` frees their memory."""
        for optimizer in self._active_optimizers().values():
            optimizer.zero_grad(set_to_none=set_to_none)

    def check_loss_isfinite(self, loss: torch.Tensor) -> None:
        """Count a loss that is NaN or infinite against `nonfinite_patience`.

        Called before ``backward``. The step of such a batch is skipped. On several ranks the window
        is counted instead, by all of them once the gradients were shared, so that they raise
        together.

        Parameters
        ----------
        loss : torch.Tensor
            The loss, one element.

        Raises
        ------
        ValueError
            When patience is exhausted.
        """
        if not is_finite(loss) and self._run.train_step.note_nonfinite_loss():
            self._count_nonfinite("A loss", self._run.step)

    def check_gradients(self) -> None:
        """Drop gradients that hold a NaN or an infinity, with a warning that names them.

        Called before clipping when `skip_nonfinite_grads` is set; the optimizers then step on the
        other gradients. Buffers that the window's forwards wrote are set back.
        """
        bad = drop_nonfinite_gradients(dict(self.modules.named_parameters()))
        if bad:
            self._run.train_step.buffers.restore()
            logger.warning("Gradients contain NaN or Inf and are dropped: %s", ", ".join(bad))

    def update_average(self, loss: torch.Tensor, avg_loss: float) -> float:
        """Return the running mean with one more loss, unless that is not finite.

        Parameters
        ----------
        loss : torch.Tensor
            The detached loss of batch number ``self.step`` of the pass, counted from 1.
        avg_loss : float
            The mean so far.
        """
        if self._run.step <= 1:
            self._nonfinite_losses = 0
        if not is_finite(loss):
            self._nonfinite_losses += 1
            return avg_loss
        count = max(1, self._run.step - self._nonfinite_losses)
        return avg_loss + (float(loss) - avg_loss) / count

    def no_sync(self, use: bool = True) -> AbstractContextManager[object]:
        """Keep all modules' gradients on this rank in this context, unless ``use`` is False."""
        return no_sync(self.modules.values(), use)

    @property
    def avg_train_loss(self) -> float:
        """Mean of the epoch's finite losses on this rank; a recipe may assign its own value."""
        return self._run.mean.mean()

    @avg_train_loss.setter
    def avg_train_loss(self, value: float) -> None:
        self._run.mean.assign(value)

    @property
    def is_padding(self) -> bool:
        """Whether the batch is a copy of another rank's, processed with zero weight."""
        epoch_pass = self._run.epoch_pass
        return epoch_pass is not None and epoch_pass.is_padding

    @property
    def grad_norm(self) -> torch.Tensor | None:
        """2-norm of all gradients of the last step of `optimizers_step`, before clipping.

        A scalar on the gradients' device; None before the first step.
        """
        norms = self._run.train_step.norms
        if len(norms) <= 1:
            return norms[0] if norms else None
        here = [norm.to(norms[0].device) for norm in norms]
        return torch.nn.utils.get_total_norm(here)

    def _train_batch(self, batch: Any, epoch_pass: EpochPass) -> torch.Tensor | None:
        """Train on a batch; return its loss, None for a padding batch."""
        loss = None
        self._run.train_step.padding_batches += epoch_pass.padding_batches
        if epoch_pass.is_padding:
            with without_gradients(self.modules):
                self.fit_batch(batch)
        else:
            loss = self.fit_batch(batch)
            epoch_pass.add_loss(loss)
        if self._looks_after_batch:
            self._after_hook()
        return loss

    def _user_average(self) -> Callable[[Any, float], float] | None:
        """Return `update_average` if a recipe overrides it."""
        return self.update_average if "update_average" in self._overrides else None

    def _batch_limit(self) -> int | None:
        return self.debug_batches if self.debug else None

    def _reached_step_limit(self) -> bool:
        limit = self.optimizer_step_limit
        return limit is not None and self._run.optimizer_step >= limit

    def _shows_bars(self, progressbar: bool | None) -> bool:
        return if_main_process() and should_show(progressbar, forbidden=self.noprogressbar)

    def _active_optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Return `optimizers_dict` without frozen ones, or the optimizer that older code sets."""
        if self.optimizers_dict is not None:
            return self.freeze_optimizers(self.optimizers_dict)
        optimizer = getattr(self, "optimizer", None)
        return {} if optimizer is None else {"optimizer": optimizer}

    def _window_ends(self) -> bool:
        """Return whether the batch fills its accumulation window or is the epoch's last."""
        if self._run.step % self._run.grad_accumulation_factor == 0:
            return True
        epoch_pass = self._run.epoch_pass
        return epoch_pass is not None and not epoch_pass.has_next()

    def _scale_loss(self, loss: torch.Tensor, batch: Any) -> torch.Tensor:
        """Return a batch's loss as its share of the accumulation window."""
        train_step, is_padding = self._run.train_step, self.is_padding
        if "loss_weight" in self._overrides:
            return train_step.scale_by_weight(loss, self.loss_weight(batch), is_padding=is_padding)
        return train_step.scale(loss, self._run.grad_accumulation_factor, is_padding=is_padding)

    def _settle_step(self) -> None:
        """Count the last step if its device left it out."""
        if self._run.train_step.settle():
            self._count_nonfinite("A gradient", self._run.batch_of_last_step)

    def _count_nonfinite(self, what: str, batch: int) -> None:
        self._run.nonfinite_count += 1
        report_nonfinite(
            what,
            step=batch,
            count=self._run.nonfinite_count,
            patience=self.nonfinite_patience,
        )
