"""One optimizer step: the accumulation window, loss scaling, clipping, the non-finite guard."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from brain_core.loop.gradients import clip_gradients, scale_gradients, step_where_finite
from brain_core.loop.padding_batches import zero_weight
from brain_core.loop.running_mean import is_finite, nan_if_nonfinite
from brain_dist import WeightedGradients, get_world_size

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

__all__ = ["TrainStep", "explain_loss", "report_nonfinite"]

logger = logging.getLogger(__name__)


class TrainStep:
    """The accumulation window of one optimizer step, from a batch's loss to new parameters.

    Attributes
    ----------
    batches : int
        Batches of this rank whose gradients wait for the step.
    padding_batches : int
        Padding batches of all ranks in the window; they add nothing to the gradients.
    """

    def __init__(self) -> None:
        self._weighted = WeightedGradients()
        self.reset()

    def reset(self) -> None:
        """Begin a new window."""
        self.batches = 0
        self.padding_batches = 0
        self._has_nonfinite_loss = False

    def scale(self, loss: torch.Tensor, accumulation: int, *, is_padding: bool) -> torch.Tensor:
        """Return a batch's loss as its share of the window's mean.

        Parameters
        ----------
        loss : torch.Tensor
            One element.
        accumulation : int
            Batches of a full window.
        is_padding : bool
            Whether the batch is a copy of another rank's, which must add nothing.
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
        """Compute gradients; those of a loss that is not finite become NaN.

        Parameters
        ----------
        loss : torch.Tensor
            What `scale` or `scale_by_weight` returned.
        scaler : torch.amp.GradScaler
            Scales the loss where it is enabled, and then finds overflows by itself.
        check : callable
            Called with a loss that is not finite.
        always_check : bool
            Call it with every loss: a recipe has a check of its own.
        """
        if scaler.is_enabled():
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch's
            return
        on_cpu = loss.device.type == "cpu"
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
        """Unscale the gradients, and divide them by the batches or weights that the window has."""
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

        Returns
        -------
        str or None
            What was not finite, where that is to be counted against ``nonfinite_patience``.
        """
        norms = [clip_gradients(optimizer, max_norm) for optimizer in optimizers]
        nonfinite = None
        if scaler.is_enabled():
            for optimizer in optimizers:
                scaler.step(optimizer)  # skips the step on overflow
            scaler.update()
        else:
            stepped = step_where_finite(optimizers, norms)
            if not stepped and not self._has_nonfinite_loss:
                nonfinite = "A gradient"
            elif self._has_nonfinite_loss and get_world_size() > 1:
                nonfinite = "A loss"
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.reset()
        return nonfinite


def report_nonfinite(what: str, *, step: int, count: int, patience: int) -> None:
    """Log a skipped step, or raise once there are more than ``patience`` in an epoch.

    Raises
    ------
    ValueError
        When patience is exhausted.
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
        If ``loss`` is no tensor of one element that has a gradient.
    """
    got = _unusable(loss)
    if got is not None:
        raise ValueError(
            "compute_objectives must return a loss of one element that depends on trainable "
            f"parameters, got {got}."
        ) from error


def _unusable(loss: Any) -> str | None:
    """Describe why no gradient can be computed of a loss; None if it can."""
    if not isinstance(loss, torch.Tensor):
        return f"{loss!r}"
    if loss.numel() != 1:
        return f"a tensor of shape {tuple(loss.shape)}. Reduce it, for instance by .mean()"
    if not loss.requires_grad:
        return "one without a gradient. Compute it from the modules' outputs, without detach()"
    return None
