"""The mean of a pass's losses, kept without waiting for the device."""

from __future__ import annotations

import math
from typing import Any

import torch

from brain_dist import sum_over_ranks

__all__ = ["LossMean", "is_finite", "spoil_if_nonfinite"]


class LossMean:
    """The mean of the finite losses seen so far.

    Losses on the CPU are read at once. Losses on an accelerator are added up there, and read only
    when somebody asks.

    Attributes
    ----------
    total, count
        Sum of the finite losses and how many there are: Python numbers, in double precision.
    """

    def __init__(self, total: float = 0.0, count: int = 0) -> None:
        self._total = total
        self._count = count
        self._waiting: torch.Tensor | None = None  # [sum, count] on the device, not yet read

    def add(self, loss: Any) -> None:
        """Take a loss into the mean: a number, or a tensor of one element."""
        if isinstance(loss, torch.Tensor):
            if loss.device.type != "cpu":
                self._add_on_device(loss)
                return
            loss = loss.item()
        value = float(loss)
        if math.isfinite(value):
            self._total += value
            self._count += 1

    def mean(self) -> float:
        """Mean over the finite losses of this rank, 0.0 before the first."""
        self._read()
        return self._total / self._count if self._count else 0.0

    def mean_over_ranks(self) -> float:
        """Mean over the finite losses of all ranks; every rank must ask."""
        total, count = sum_over_ranks([self.total, self.count])
        return total / count if count else 0.0

    @property
    def total(self) -> float:
        """Sum of the finite losses."""
        self._read()
        return self._total

    @property
    def count(self) -> int:
        """How many finite losses there were."""
        self._read()
        return self._count

    def _add_on_device(self, loss: torch.Tensor) -> None:
        widest = torch.float32 if loss.device.type == "mps" else torch.float64  # it has no doubles
        loss = loss.detach().to(widest).reshape(())
        finite = torch.isfinite(loss)
        pair = torch.stack((torch.where(finite, loss, 0.0), finite.to(widest)))
        self._waiting = pair if self._waiting is None else self._waiting.add_(pair)

    def _read(self) -> None:
        if self._waiting is None:
            return
        total, count = self._waiting.tolist()
        self._waiting = None
        self._total += total
        self._count += int(count)


def is_finite(loss: Any) -> bool:
    """Whether a loss, a number or a tensor of one element, is neither NaN nor infinite."""
    return math.isfinite(loss.item() if isinstance(loss, torch.Tensor) else loss)


def spoil_if_nonfinite(loss: torch.Tensor) -> torch.Tensor:
    """Return ``loss`` as it is when it is finite, and NaN with NaN gradients when it is not.

    A loss may be infinite and its gradients finite all the same. Spoilt, they tell every rank that
    shares them, in the all-reduce that takes place anyhow, that this step must not be taken. On an
    accelerator this happens without asking whether the loss is finite: ``loss - loss`` is 0 or NaN.
    """
    if loss.device.type == "cpu":
        return loss if is_finite(loss) else loss * math.nan
    detached = loss.detach()
    return loss * (1.0 + (detached - detached))
