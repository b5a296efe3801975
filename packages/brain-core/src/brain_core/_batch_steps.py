"""What happens to one batch: forward, backward, the step, and the guard against bad numbers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from brain_dist import WeightedGradients, get_world_size, no_sync

from ._fillers import worthless
from ._gradients import (
    clip_gradients,
    drop_nonfinite_gradients,
    scale_gradients,
    step_where_finite,
)
from ._hooks import BrainHooks
from ._losses import is_finite, spoil_if_nonfinite
from ._stage import Stage

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from contextlib import AbstractContextManager

    from ._batches import Batches
    from ._setup import Modules

__all__ = ["BatchSteps"]

logger = logging.getLogger(__name__)


class BatchSteps(BrainHooks):
    """The part of `Brain` that deals with a single batch. A subclass may replace any of it."""

    modules: Modules
    optimizers_dict: dict[str, torch.optim.Optimizer] | None
    scaler: torch.amp.GradScaler
    training_ctx: AbstractContextManager[Any]
    evaluation_ctx: AbstractContextManager[Any]
    step: int
    optimizer_step: int
    nonfinite_count: int
    grad_accumulation_factor: int
    max_grad_norm: float
    nonfinite_patience: int
    skip_nonfinite_grads: bool
    is_filler = False

    _weighted: WeightedGradients
    _batches: Batches[Any] | None = None  # the training pass under way
    _window_batches = 0  # batches whose gradients wait for the step
    _window_fillers = 0  # those of all ranks that weigh nothing
    _window_nonfinite = False  # one of them had a loss that is not finite
    _nonfinite_losses = 0  # left out by update_average since the pass began

    def fit_batch(self, batch: Any) -> torch.Tensor:
        """Train on one batch; override for several updates or optimizers of your own.

        Calls `on_fit_batch_start`, `compute_forward`, `compute_objectives`, `check_loss_isfinite`,
        `optimizers_step` when the accumulation window is full or the epoch's data ends, and
        `on_fit_batch_end`. An override need only return a loss: nothing else relies on what this
        method does.

        Parameters
        ----------
        batch : object
            What the loader gave.

        Returns
        -------
        torch.Tensor
            The loss, detached, where it was computed: reading it here would wait for the device.

        Raises
        ------
        ValueError
            If the loss is no single number or has no gradient, or if losses or gradients were not
            finite more often than `nonfinite_patience` allows.
        """
        should_step = self._window_ends()
        self.on_fit_batch_start(batch, should_step)
        self._window_batches += 1
        with self.no_sync(not should_step):
            with self.training_ctx:
                outputs = self.compute_forward(batch, Stage.TRAIN)
                loss = self.compute_objectives(outputs, batch, Stage.TRAIN)
            try:
                self._backward(self._scaled(loss, batch))
            except (AttributeError, RuntimeError, TypeError, ValueError) as error:
                _explain_loss(loss, error)
                raise
        if should_step:
            self.optimizers_step()
        self.on_fit_batch_end(batch, outputs, loss, should_step)
        return loss.detach()

    @torch.no_grad()
    def evaluate_batch(self, batch: Any, stage: Stage) -> torch.Tensor:
        """Evaluate one batch; override for another procedure than in training.

        Parameters
        ----------
        batch : object
            What the loader gave.
        stage : Stage
            `Stage.VALID` or `Stage.TEST`.

        Returns
        -------
        torch.Tensor
            The loss, detached.
        """
        with self.evaluation_ctx:
            outputs = self.compute_forward(batch, stage=stage)
            loss = self.compute_objectives(outputs, batch, stage=stage)
        return loss.detach()

    def optimizers_step(self) -> None:
        """Step all active optimizers on the gradients of the window, then zero them.

        The gradients of a short last window are averaged over the batches that it has, of all
        ranks and without fillers. Each optimizer's gradients, of all its parameter groups, are
        clipped by one norm. If any gradient is not finite, no optimizer steps, and the window
        counts against `nonfinite_patience`.
        """
        optimizers = self._active_optimizers().values()
        if not optimizers:
            return
        for optimizer in optimizers if self.scaler.is_enabled() else ():
            self.scaler.unscale_(optimizer)
        self._average_window(optimizers)
        if self.skip_nonfinite_grads and not self.scaler.is_enabled():
            self.check_gradients()
        norms = [clip_gradients(optimizer, self.max_grad_norm) for optimizer in optimizers]
        if self.scaler.is_enabled():
            for optimizer in optimizers:
                self.scaler.step(optimizer)  # leaves out the step by itself: overflow is its trade
            self.scaler.update()
        elif not step_where_finite(optimizers, norms) and not self._window_nonfinite:
            self._count_nonfinite("A gradient")
        elif self._window_nonfinite and get_world_size() > 1:
            self._count_nonfinite("A loss")
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._window_batches = self._window_fillers = 0
        self._window_nonfinite = False
        self.optimizer_step += 1

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Zero the gradients of all active optimizers.

        Parameters
        ----------
        set_to_none : bool
            Remove the gradients instead, which saves their memory.
        """
        for optimizer in self._active_optimizers().values():
            optimizer.zero_grad(set_to_none=set_to_none)

    def check_loss_isfinite(self, loss: torch.Tensor) -> None:
        """Count a loss that is NaN or infinite; past `nonfinite_patience`, give up.

        Called before ``backward``. The step of such a batch is left out, so nothing is lost by
        going on. On several ranks the window is counted instead, by all of them, when the
        gradients have been shared: they all give up together.

        Parameters
        ----------
        loss : torch.Tensor
            The loss, one element.

        Raises
        ------
        ValueError
            When patience is exhausted.
        """
        if is_finite(loss):
            return
        inside_window = self._window_batches > 0
        self._window_nonfinite = inside_window
        if not (inside_window and get_world_size() > 1):
            self._count_nonfinite("A loss")

    def check_gradients(self) -> None:
        """Drop the gradients that hold a NaN or an infinity, with a warning that names them.

        Called before clipping when `skip_nonfinite_grads` is set; the optimizers then step on
        what is left.
        """
        bad = drop_nonfinite_gradients(dict(self.modules.named_parameters()))
        if bad:
            logger.warning("Gradients contain NaN or Inf and are dropped: %s", ", ".join(bad))

    def update_average(self, loss: torch.Tensor, avg_loss: float) -> float:
        """Take a loss into a running mean; a loss that is not finite leaves it as it is.

        Parameters
        ----------
        loss : torch.Tensor
            The detached loss of batch number ``self.step`` of the pass, counted from 1.
        avg_loss : float
            The mean so far.

        Returns
        -------
        float
            Mean of the finite losses.
        """
        if self.step <= 1:
            self._nonfinite_losses = 0
        if not is_finite(loss):
            self._nonfinite_losses += 1
            return avg_loss
        count = max(1, self.step - self._nonfinite_losses)
        return avg_loss + (float(loss) - avg_loss) / count

    def no_sync(self, use: bool = True) -> AbstractContextManager[object]:
        """Leave gradients unshared between ranks within this context, over all modules.

        Parameters
        ----------
        use : bool
            Share them all the same if False.
        """
        return no_sync(self.modules.values(), use)

    def _active_optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Those of `optimizers_dict` that are not frozen, or the one that older code sets."""
        if self.optimizers_dict is not None:
            return self.freeze_optimizers(self.optimizers_dict)
        optimizer = getattr(self, "optimizer", None)
        return {} if optimizer is None else {"optimizer": optimizer}

    def _window_ends(self) -> bool:
        """Whether the batch under way fills its accumulation window, or is the epoch's last."""
        if self.step % self.grad_accumulation_factor == 0:
            return True
        return self._batches is not None and not self._batches.has_next()

    def _scaled(self, loss: torch.Tensor, batch: Any) -> torch.Tensor:
        """Weigh a batch's loss within its window."""
        if self.is_filler:
            loss = worthless(loss)
        if self._overrides("loss_weight"):
            weight = self.loss_weight(batch)
            weight = 1.0 if weight is None else weight
            return self._weighted.scale(loss, 0.0 if self.is_filler else weight)
        if self.grad_accumulation_factor > 1:
            return loss / self.grad_accumulation_factor
        return loss

    def _average_window(self, optimizers: Collection[torch.optim.Optimizer]) -> None:
        """Make the gradients of a window that is not full, or is weighed, into a mean."""
        if self._overrides("loss_weight"):
            groups = [group for optimizer in optimizers for group in optimizer.param_groups]
            self._weighted.normalize(p for group in groups for p in group["params"])
        elif self._window_fillers or self._window_batches < self.grad_accumulation_factor:
            # Of all ranks: a full window's batches, and those that count in this one.
            full = self.grad_accumulation_factor * get_world_size()
            count = self._window_batches * get_world_size() - self._window_fillers
            if 0 < count < full:
                scale_gradients(optimizers, full / count)

    def _backward(self, scaled: torch.Tensor) -> None:
        if self.scaler.is_enabled():
            self.scaler.scale(scaled).backward()  # type: ignore[no-untyped-call]  # torch's
            return
        finite = scaled.device.type == "cpu" and is_finite(scaled)
        if self._overrides("check_loss_isfinite") or (scaled.device.type == "cpu" and not finite):
            self.check_loss_isfinite(scaled)
        shared = scaled if finite else spoil_if_nonfinite(scaled)
        shared.backward()  # type: ignore[no-untyped-call]  # torch's

    def _overrides(self, method: str) -> bool:
        """Whether a subclass has put its own in place of one of these methods."""
        return getattr(type(self), method) is not getattr(BatchSteps, method)

    def _count_nonfinite(self, what: str) -> None:
        self.nonfinite_count += 1
        if self.nonfinite_count > self.nonfinite_patience:
            raise ValueError(
                f"Losses and gradients must be finite, but {self.nonfinite_count} batches of this "
                f"epoch had one that is not, and nonfinite_patience is {self.nonfinite_patience}. "
                "No parameter was changed by them. Lower the learning rate or max_grad_norm; to "
                "find the operation, run with\n"
                "    with torch.autograd.detect_anomaly():\n        brain.fit(...)"
            )
        logger.warning(
            "%s of batch %d is not finite: this step is left out (%d of %d that are tolerated).",
            what,
            self.step,
            self.nonfinite_count,
            self.nonfinite_patience,
        )


def _explain_loss(loss: Any, error: Exception) -> None:
    """Raise a clearer error if the loss itself is to blame for ``error``."""
    if not isinstance(loss, torch.Tensor):
        got = f"{loss!r}"
    elif loss.numel() != 1:
        got = f"a tensor of shape {tuple(loss.shape)}. Reduce it, for instance by .mean()"
    elif not loss.requires_grad:
        got = "one without a gradient. Compute it from the modules' outputs, without detach()"
    else:
        return
    raise ValueError(
        "compute_objectives must return a loss of one element that depends on trainable "
        f"parameters, got {got}."
    ) from error
