"""The mean loss of a pass, computed without waiting for the device."""

from __future__ import annotations

import math
from typing import Any

import torch

from brain_core.loop.late_copy import LateCopy
from brain_dist import sum_over_ranks

__all__ = ["LossMean", "is_finite", "nan_if_nonfinite", "reads_at_once"]


class LossMean:
    """The mean of the finite losses so far, or a value that a recipe assigns instead.

    Losses on the CPU are read at once. Losses on an accelerator are added up there, and read only
    when the mean is read.

    Parameters
    ----------
    total : float
        Sum of the finite losses.
    count : int
        Number of the finite losses.
    assigned : float, optional
        The value that a recipe computed instead; readable as an attribute.
    """

    def __init__(self, total: float = 0.0, count: int = 0, assigned: float | None = None) -> None:
        self._total = total
        self._count = count
        self.assigned = assigned
        self._pending: torch.Tensor | None = None  # [sum, count] on the device, not yet read
        self._recent: tuple[float, int, LateCopy] | None = None

    def add(self, loss: Any) -> None:
        """Add a loss: a number, or a tensor of one element."""
        if isinstance(loss, torch.Tensor):
            if not reads_at_once(loss):
                self._add_on_device(loss)
                return
            loss = loss.item()
        value = float(loss)
        if math.isfinite(value):
            self._total += value
            self._count += 1

    def assign(self, value: float) -> None:
        """Replace the mean by a recipe's own value."""
        self.assigned = value

    def mean(self) -> float:
        """Return the mean of this rank's finite losses, 0.0 before the first."""
        if self.assigned is not None:
            return self.assigned
        self._read()
        return self._total / self._count if self._count else 0.0

    def recent_mean(self) -> float:
        """Return the mean; on an accelerator, from the second call on, that of the call before.

        A bar shows it: what was on its way since the last drawing is read without waiting for the
        losses that the device still computes.
        """
        if self.assigned is not None or self._pending is None:
            return self.mean()
        recent = self._recent
        self._recent = self._total, self._count, LateCopy(self._pending)
        if recent is None:
            return self.mean()
        total, count, copied = recent
        more, more_losses = copied.read()
        return (total + more) / (count + more_losses) if count + more_losses else 0.0

    def mean_over_ranks(self) -> float:
        """Return the mean of all ranks' finite losses; every rank calls it.

        A value that was assigned is returned as it is.
        """
        if self.assigned is not None:
            return self.assigned
        total, count = sum_over_ranks([self.total, self.count])
        return total / count if count else 0.0

    @property
    def total(self) -> float:
        """Sum of the finite losses, in double precision."""
        self._read()
        return self._total

    @property
    def count(self) -> int:
        """Number of the finite losses."""
        self._read()
        return self._count

    def _add_on_device(self, loss: torch.Tensor) -> None:
        widest = torch.float32 if loss.device.type == "mps" else torch.float64  # MPS has no float64
        loss = loss.detach().to(widest).reshape(())
        finite = torch.isfinite(loss)
        pair = torch.stack((torch.where(finite, loss, 0.0), finite.to(widest)))
        self._pending = pair if self._pending is None else self._pending.add_(pair)

    def _read(self) -> None:
        if self._pending is None:
            return
        total, count = self._pending.tolist()
        self._pending = None
        self._total += total
        self._count += int(count)


def reads_at_once(loss: torch.Tensor) -> bool:
    """Return whether a loss can be read without waiting for a device."""
    return loss.is_cpu


def is_finite(loss: Any) -> bool:
    """Return whether a loss, a number or a tensor of one element, is neither NaN nor infinite."""
    return math.isfinite(loss.item() if isinstance(loss, torch.Tensor) else loss)


def nan_if_nonfinite(loss: torch.Tensor) -> torch.Tensor:
    """Return a finite loss as it is, and any other as NaN with NaN gradients.

    A loss may be infinite and its gradients finite. With NaN gradients every rank learns, from the
    all-reduce that takes place anyway, that this step must not be taken. On an accelerator this
    needs no read of the loss: ``loss - loss`` is 0 or NaN.
    """
    if reads_at_once(loss):
        return loss if is_finite(loss) else loss * math.nan
    detached = loss.detach()
    return loss * (1.0 + (detached - detached))
