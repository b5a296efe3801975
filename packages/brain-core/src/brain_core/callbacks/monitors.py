"""Monitors of a training: gradient norms, throughput."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from brain_core.callbacks.base import Callback
from brain_core.stage import Stage
from brain_dist import get_world_size, sum_over_ranks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from brain_core.brain import Brain

__all__ = ["BatchTimer", "GradNormMonitor", "ThroughputMonitor", "samples_in_batch"]

_MOST_UNREAD = 100


class GradNormMonitor(Callback):
    """Adds to the figures of each training pass what its gradients were like.

    ``grad_norm`` is the mean over the epoch's steps of the norm before clipping, ``grad_norm_max``
    the largest, and ``skipped_steps`` the number of steps that a gradient that was not finite has
    prevented. A device is read once in 100 steps. A resumed epoch has the figures of the whole one.
    """

    def __init__(self) -> None:
        self._begin()

    def on_stage_start(self, brain: Brain, stage: Stage, epoch: int | None) -> None:
        """Begin an epoch's figures."""
        del brain, epoch
        if stage is Stage.TRAIN:
            self._begin()

    def on_optimizer_step(self, brain: Brain, *, is_taken: bool) -> None:
        """Note the norm, which is read later."""
        norm = brain.grad_norm
        if not is_taken:
            self._skipped += 1
        elif norm is not None:
            self._unread.append(norm.detach())
            if len(self._unread) >= _MOST_UNREAD:
                self._read()

    def stage_figures(self, brain: Brain, stage: Stage) -> Mapping[str, Any]:
        """Return the figures of a training pass."""
        del brain
        if stage is not Stage.TRAIN:
            return {}
        self._read()
        figures: dict[str, Any] = {"skipped_steps": self._skipped}
        if self._count:
            figures = {"grad_norm": self._sum / self._count, "grad_norm_max": self._max} | figures
        return figures

    def state_dict(self) -> dict[str, Any]:
        """Return the figures of the epoch so far."""
        self._read()
        return {
            "sum": self._sum,
            "max": self._max,
            "count": self._count,
            "skipped": self._skipped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with figures that were saved."""
        self._begin()
        self._sum, self._max = state["sum"], state["max"]
        self._count, self._skipped = state["count"], state["skipped"]

    def _begin(self) -> None:
        self._unread: list[torch.Tensor] = []
        self._sum = self._max = 0.0
        self._count = self._skipped = 0

    def _read(self) -> None:
        """Read the norms in their order, so that the sum does not depend on when they are read."""
        for norm in torch.stack(self._unread).tolist() if self._unread else ():
            self._sum += norm
            self._max = max(self._max, norm)
            self._count += 1
        self._unread.clear()


class ThroughputMonitor(Callback):
    """Adds to the figures of each training pass how fast it was, on all ranks together.

    ``samples_per_s`` counts the rows of all batches; ``data_wait`` is the share of the time, from
    0 to 1, in which training waited for the next batch. A resumed epoch is measured from the
    restart on.
    """

    def __init__(self) -> None:
        self._timer = BatchTimer()

    def on_fit_start(self, brain: Brain, *, is_resumed: bool) -> None:
        """Begin to measure."""
        del brain, is_resumed
        self._timer.reset()

    def on_stage_start(self, brain: Brain, stage: Stage, epoch: int | None) -> None:
        """Begin to measure."""
        del brain, epoch
        if stage is Stage.TRAIN:
            self._timer.reset()

    def watch_batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Measure how long each batch is waited for."""
        return self._timer.watch(batches)

    def on_fit_batch_end(self, brain: Brain, batch: Any, loss: torch.Tensor) -> None:
        """Count the rows."""
        del brain, loss
        self._timer.count(batch)

    def stage_figures(self, brain: Brain, stage: Stage) -> Mapping[str, Any]:
        """Return the figures of a training pass; every rank calls it."""
        del brain
        if stage is not Stage.TRAIN:
            return {}
        samples, seconds, waited = sum_over_ranks(self._timer.take())
        ranks = get_world_size()
        return {"samples_per_s": samples * ranks / seconds, "data_wait": waited / seconds}


class BatchTimer:
    """Measures a training pass: rows, seconds, and seconds in which it waited for data."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin to measure."""
        self._started = time.perf_counter()
        self._waited = 0.0
        self._samples = 0

    def take(self) -> list[float]:
        """Return rows, seconds and seconds of waiting, and begin anew."""
        taken = max(time.perf_counter() - self._started, 1e-9)
        found = [self._samples, taken, self._waited]
        self.reset()
        return found

    def count(self, batch: Any) -> None:
        """Count the rows of a batch."""
        self._samples += samples_in_batch(batch)

    def watch(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Measure how long each batch is waited for."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, self)
            self._waited += time.perf_counter() - asked
            if batch is self:
                return
            yield batch


def samples_in_batch(batch: Any) -> int:
    """Return the number of rows of a batch: of its first tensor, or its length; 1 if it has none.

    Examples
    --------
    >>> samples_in_batch((torch.zeros(4, 2), "names")), samples_in_batch({"x": [1, 2, 3]})
    (4, 3)
    """
    while isinstance(batch, (tuple, list, dict)) and batch:
        values = list(batch.values() if isinstance(batch, dict) else batch)
        tensors = [value for value in values if isinstance(value, torch.Tensor) and value.ndim]
        if not tensors and isinstance(batch, list):
            return len(batch)
        batch = tensors[0] if tensors else values[0]
    if isinstance(batch, torch.Tensor):
        return batch.shape[0] if batch.ndim else 1
    return len(batch) if hasattr(batch, "__len__") else 1
