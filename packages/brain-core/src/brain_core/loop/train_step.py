"""One optimizer step: the accumulation window, loss scaling, clipping, the non-finite guard."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any

import torch

from brain_core.loop.buffer_guard import BufferGuard
from brain_core.loop.gradients import (
    can_step_on_device,
    clip_gradients,
    scale_gradients,
    step_on_device,
    step_where_finite,
    step_without_overflow,
)
from brain_core.loop.late_copy import LateCopy
from brain_core.loop.padding_batches import zero_weight
from brain_core.loop.running_mean import is_finite, nan_if_nonfinite, reads_at_once
from brain_dist import WeightedGradients, get_world_size

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

__all__ = ["TrainStep", "check_no_closure", "explain_loss", "report_nonfinite"]

logger = logging.getLogger(__name__)
_FIT_BATCH_WITH_CLOSURE = """
    def fit_batch(self, batch):
        def closure():
            self.optimizer.zero_grad()
            predictions = self.compute_forward(batch, Stage.TRAIN)
            loss = self.compute_objectives(predictions, batch, Stage.TRAIN)
            loss.backward()
            return loss

        return self.optimizer.step(closure).detach()
"""


class TrainStep:
    """The accumulation window of one optimizer step, from a batch's loss to new parameters.

    Attributes
    ----------
    batches : int
        Batches of this rank in the current window.
    padding_batches : int
        Padding batches of all ranks in the window; they add nothing to the gradients.
    buffers : BufferGuard
        Sets back what the forwards of a skipped step wrote.
    norms : list of torch.Tensor
        Of the last step, the norm of each optimizer's gradients before they were clipped.
    """

    def __init__(self) -> None:
        self._weighted = WeightedGradients()
        self.buffers = BufferGuard()
        self.norms: list[torch.Tensor] = []
        self._was_taken = True
        self.reset()

    def reset(self) -> None:
        """Begin a new window."""
        self.batches = 0
        self.padding_batches = 0
        self._has_nonfinite_loss = False
        self._skipped: LateCopy | None = None
        self.buffers.forget()

    @property
    def was_taken(self) -> bool:
        """Whether the last step changed parameters; this waits for a device that decides it."""
        return self._was_taken if self._skipped is None else not self.is_uncounted

    @property
    def is_uncounted(self) -> bool:
        """Whether the last step was left out on the device, and `settle` has not yet said so."""
        return self._skipped is not None and any(self._skipped.read())

    def settle(self) -> bool:
        """Return `is_uncounted`, once."""
        if self._skipped is None:
            return False
        skipped = self.is_uncounted
        self._was_taken, self._skipped = not skipped, None
        return skipped

    def begin_batch(self) -> None:
        """Count a batch, and keep the buffers as they are before a window's first forward."""
        if self.batches == 0:
            self.buffers.remember()
        self.batches += 1

    def scale(self, loss: torch.Tensor, accumulation: int, *, is_padding: bool) -> torch.Tensor:
        """Return a batch's loss as its share of the window's mean.

        Parameters
        ----------
        loss : torch.Tensor
            One element.
        accumulation : int
            Batches of a full window.
        is_padding : bool
            Whether the batch is a padding batch, whose loss gets zero weight.
        """
        if is_padding:
            loss = zero_weight(loss)
        return loss / accumulation if accumulation > 1 else loss

    def scale_by_weight(
        self, loss: torch.Tensor, weight: float | torch.Tensor | None, *, is_padding: bool
    ) -> torch.Tensor:
        """Return a batch's loss times its weight, where a recipe defines ``loss_weight``."""
        if is_padding:
            return self._weighted.scale(zero_weight(loss), 0.0)
        return self._weighted.scale(loss, 1.0 if weight is None else weight)

    def backward(
        self,
        loss: torch.Tensor,
        scaler: torch.amp.GradScaler,
        check: Callable[[torch.Tensor], None],
        *,
        always_check: bool,
    ) -> None:
        """Compute gradients; a loss that is not finite gets NaN gradients.

        Parameters
        ----------
        loss : torch.Tensor
            The result of `scale` or `scale_by_weight`.
        scaler : torch.amp.GradScaler
            Scales the loss if enabled; it then detects overflows itself.
        check : callable
            Called with a loss that is not finite.
        always_check : bool
            Whether to call ``check`` with every loss, because a recipe overrides it.
        """
        if scaler.is_enabled():
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch's
            return
        on_cpu = reads_at_once(loss)
        finite = on_cpu and is_finite(loss)
        if always_check or (on_cpu and not finite):
            check(loss)
        (loss if finite else nan_if_nonfinite(loss)).backward()  # type: ignore[no-untyped-call]  # torch's

    def note_nonfinite_loss(self) -> bool:
        """Note that a loss is not finite; return whether to count it now.

        On several ranks the window is counted at its end, by all of them.
        """
        self._has_nonfinite_loss = self.batches > 0
        return not (self._has_nonfinite_loss and get_world_size() > 1)

    def average(
        self,
        optimizers: Collection[torch.optim.Optimizer],
        scaler: torch.amp.GradScaler,
        accumulation: int,
        *,
        weighted: bool,
    ) -> None:
        """Unscale the gradients, and divide them by the window's number of batches or weights."""
        for optimizer in optimizers if scaler.is_enabled() else ():
            scaler.unscale_(optimizer)
        if weighted:
            groups = [group for optimizer in optimizers for group in optimizer.param_groups]
            self._weighted.normalize(p for group in groups for p in group["params"])
        elif self.padding_batches or self.batches < accumulation:
            # Of all ranks: a full window's batches, and those that count in this one.
            full = accumulation * get_world_size()
            count = self.batches * get_world_size() - self.padding_batches
            if 0 < count < full:
                scale_gradients(optimizers, full / count)

    def step(
        self,
        optimizers: Collection[torch.optim.Optimizer],
        scaler: torch.amp.GradScaler,
        max_norm: float,
    ) -> str | None:
        """Clip, step if all gradients are finite, zero the gradients and begin a new window.

        On an accelerator, optimizers that can leave out a step by themselves do so, and nothing
        waits for their device: `settle` returns later whether they did.

        Returns
        -------
        str or None
            What was not finite, if it counts against ``nonfinite_patience``; else None.
        """
        self.norms = norms = [clip_gradients(optimizer, max_norm) for optimizer in optimizers]
        nonfinite = None
        if not scaler.is_enabled() and self._is_decided_on_device(optimizers, norms):
            skipped = step_on_device(optimizers, norms)
            self.buffers.restore_where(skipped)
            self._end_window(optimizers)
            self._skipped = LateCopy(skipped)
            return None
        if scaler.is_enabled():
            stepped = step_without_overflow(optimizers, scaler)
        else:
            stepped = step_where_finite(optimizers, norms)
            if not stepped and not self._has_nonfinite_loss:
                nonfinite = "A gradient"
            elif self._has_nonfinite_loss and get_world_size() > 1:
                nonfinite = "A loss"
        self._was_taken = stepped
        if not stepped or self._has_nonfinite_loss:
            self.buffers.restore()
        self._end_window(optimizers)
        return nonfinite

    def _is_decided_on_device(
        self, optimizers: Collection[torch.optim.Optimizer], norms: list[torch.Tensor]
    ) -> bool:
        return (
            not reads_at_once(norms[0])
            and not self._has_nonfinite_loss
            and can_step_on_device(optimizers)
            and self.buffers.can_restore_on_device()
        )

    def _end_window(self, optimizers: Collection[torch.optim.Optimizer]) -> None:
        """Free the gradients, and begin a new window."""
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.reset()


def check_no_closure(optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Check that ``step()`` can be called without arguments.

    Raises
    ------
    ValueError
        If an optimizer, such as ``LBFGS``, evaluates the loss itself through a closure.
    """
    for optimizer in optimizers:
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ValueError(
                f"fit_batch calls optimizer.step() without a closure, but "
                f"{type(optimizer).__name__} requires one. Override fit_batch:\n"
                + _FIT_BATCH_WITH_CLOSURE
            )


def report_nonfinite(what: str, *, step: int, count: int, patience: int) -> None:
    """Log a skipped step, or raise if an epoch has more than ``patience`` of them.

    Raises
    ------
    ValueError
        If ``count`` exceeds ``patience``.
    """
    if count > patience:
        raise ValueError(
            f"Losses and gradients must be finite, but {count} batches of this epoch had one that "
            f"is not, and nonfinite_patience is {patience}. No parameter was changed by them. "
            "Lower the learning rate or max_grad_norm; to find the operation, run with\n"
            "    with torch.autograd.detect_anomaly():\n        brain.fit(...)"
        )
    logger.warning(
        "%s of batch %d is not finite: this step is skipped (%d of %d that are tolerated).",
        what,
        step,
        count,
        patience,
    )


def explain_loss(loss: Any, error: Exception) -> None:
    """Raise a clearer error if the loss itself caused ``error``.

    Raises
    ------
    ValueError
        If ``loss`` is not a tensor of one element that requires a gradient.
    """
    got = _unusable(loss)
    if got is not None:
        raise ValueError(
            "compute_objectives must return a loss of one element that depends on trainable "
            f"parameters, got {got}."
        ) from error


def _unusable(loss: Any) -> str | None:
    """Describe why a loss has no gradient; return None if it has one."""
    if loss is None:
        return "None. Return it"
    if not isinstance(loss, torch.Tensor):
        return f"{loss!r}. Return the tensor, not its item()"
    if loss.numel() != 1:
        return f"a tensor of shape {tuple(loss.shape)}. Reduce it, for instance by .mean()"
    if not loss.requires_grad:
        return "one without a gradient. Compute it from the modules' outputs, without detach()"
    return None
