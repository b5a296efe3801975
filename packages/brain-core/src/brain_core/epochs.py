"""Epoch counters, with early stopping, that a checkpoint can hold."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Collection
from contextlib import contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal

from brain_ckpt import (
    mark_as_loader,
    mark_as_saver,
    mark_as_transfer,
    register_checkpoint_hooks,
)
from brain_dist import ddp_broadcast

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "EpochCounter",
    "EpochCounterWithStopper",
    "check_epochs",
    "count_epochs",
    "epochs_left",
    "is_epoch_counter",
]

logger = logging.getLogger(__name__)


@register_checkpoint_hooks
class EpochCounter:
    """Iterate over the epochs 1 to ``limit``, from where a checkpoint left off.

    Parameters
    ----------
    limit : int
        The last epoch.

    Attributes
    ----------
    current : int
        The current epoch; 0 before the first.

    Examples
    --------
    >>> list(EpochCounter(3))
    [1, 2, 3]
    """

    _trained: int | None = None  # the real epoch, while `current` is another checkpoint's

    def __init__(self, limit: int) -> None:
        if int(limit) < 0:
            raise ValueError(f"EpochCounter needs a limit of 0 or more, got {limit!r}.")
        self.limit = int(limit)
        self.current = 0

    def __iter__(self) -> EpochCounter:
        """Return the counter itself: its count continues."""
        return self

    def __next__(self) -> int:
        """Enter the next epoch."""
        if self.current >= self.limit:
            raise StopIteration
        self.current += 1
        logger.info("Going into epoch %d", self.current)
        return self.current

    @contextmanager
    def showing_epoch_of(self, path: Any, *, end_of_epoch: bool) -> Iterator[None]:
        """Set `current` to the epoch that a file holds, for a log; the real epoch is saved.

        Parameters
        ----------
        path : path
            A file that a counter of this kind has saved.
        end_of_epoch : bool
            Whether it was saved at the end of that epoch.
        """
        shown, former = copy.copy(self), (self.current, self._trained)
        shown._recover(path, end_of_epoch=end_of_epoch)  # noqa: SLF001 - of the same class
        self._trained = self._epoch_to_save()
        self.current = shown.current
        try:
            yield
        finally:
            self.current, self._trained = former

    def _epoch_to_save(self) -> int:
        return self.current if self._trained is None else self._trained

    @mark_as_saver
    def _save(self, path: Any) -> None:
        with open(path, "w", encoding="utf-8") as file:  # path may be a str
            file.write(str(self._epoch_to_save()))

    @mark_as_loader
    @mark_as_transfer
    def _recover(self, path: Any, end_of_epoch: bool = True) -> None:
        with open(path, encoding="utf-8") as file:
            self._continue_from(int(file.read()), end_of_epoch=end_of_epoch)

    def _continue_from(self, saved: int, *, end_of_epoch: bool) -> None:
        """Continue with the epoch after a complete one, or with an incomplete one again."""
        self.current = saved if end_of_epoch else saved - 1


@register_checkpoint_hooks
class EpochCounterWithStopper(EpochCounter):
    """An `EpochCounter` that ends when a metric no longer improves.

    Call `update_metric` once per validation. A metric improves when it is better than the best so
    far by more than one millionth of its size, in either direction and with either sign. On several
    ranks the metric of rank 0 decides for all.

    Parameters
    ----------
    limit : int
        The last epoch.
    limit_to_stop : int
        Epochs without improvement after which to stop.
    limit_warmup : int
        Epochs at the beginning that are ignored.
    direction : {"min", "max"}
        Whether a lower or a higher metric is better.

    Examples
    --------
    >>> counter = EpochCounterWithStopper(10, limit_to_stop=2, limit_warmup=0, direction="max")
    >>> for epoch in counter:
    ...     counter.update_metric(0.5)
    >>> epoch
    3
    """

    def __init__(
        self, limit: int, limit_to_stop: int, limit_warmup: int, direction: Literal["min", "max"]
    ) -> None:
        super().__init__(limit)
        for name, value in (("limit_to_stop", limit_to_stop), ("limit_warmup", limit_warmup)):
            if value < 0:
                raise ValueError(f"Stopper {name!r} must be >= 0, got {value!r}.")
        if direction not in ("min", "max"):
            raise ValueError(f"Stopper 'direction' must be 'min' or 'max', got {direction!r}.")
        self.limit_to_stop = limit_to_stop
        self.limit_warmup = limit_warmup
        self.direction = direction
        self.min_delta = 1e-6
        self.should_stop = False
        self.best_limit = 0
        self.best_score = math.inf if direction == "min" else -math.inf

    def __next__(self) -> int:
        """Enter the next epoch, unless the metric has stopped improving."""
        self.should_stop = ddp_broadcast(self.should_stop)
        if self.should_stop:
            raise StopIteration
        return super().__next__()

    def update_metric(self, current_metric: float) -> None:
        """Record this epoch's metric and decide whether to stop after it.

        Parameters
        ----------
        current_metric : float
            The metric; NaN is no improvement.
        """
        if self.current <= self.limit_warmup:
            return
        if improves(current_metric, self.best_score, self.direction, self.min_delta):
            self.best_limit = self.current
            self.best_score = float(current_metric)
        without = self.current - self.best_limit
        self.should_stop = without >= self.limit_to_stop
        if self.should_stop:
            logger.info(
                "%d epochs without improvement; the patience of %d is exhausted, stopping.",
                without,
                self.limit_to_stop,
            )

    @mark_as_saver
    def _save(self, path: Any) -> None:
        import yaml  # where a checkpoint is written or read, not where this is imported

        state = {
            "current_epoch": self._epoch_to_save(),
            "best_epoch": self.best_limit,
            "best_score": self.best_score,
            "should_stop": self.should_stop,
        }
        with open(path, "w", encoding="utf-8") as file:
            yaml.safe_dump(state, file)

    @mark_as_loader
    @mark_as_transfer
    def _recover(self, path: Any, end_of_epoch: bool = True) -> None:
        import yaml  # as above

        with open(path, encoding="utf-8") as file:
            state = yaml.safe_load(file)
        if isinstance(state, int):  # SpeechBrain saves a stopper as a plain EpochCounter
            logger.warning(
                "The checkpoint holds no early-stopping state: the patience starts anew."
            )
            self._continue_from(state, end_of_epoch=end_of_epoch)
            return
        self._continue_from(state["current_epoch"], end_of_epoch=end_of_epoch)
        self.best_limit = state["best_epoch"]
        self.best_score = state["best_score"]
        self.should_stop = state["should_stop"]


def is_epoch_counter(obj: Any) -> bool:
    """Return whether an object is an epoch counter, ours or SpeechBrain's."""
    return isinstance(obj, EpochCounter) or (
        type(obj).__module__ == "speechbrain.utils.epoch_loop" and hasattr(obj, "current")
    )


def check_epochs(epochs: object) -> None:
    """Raise a TypeError that says what to write if a number of epochs was given."""
    if not hasattr(epochs, "__iter__") and not hasattr(epochs, "__getitem__"):
        raise TypeError(
            "epoch_counter must be an EpochCounter or an iterable of numbers, got "
            f"{epochs!r}. Write EpochCounter({epochs!r}), or range(1, {epochs!r} + 1)."
        )


def epochs_left(
    epochs: Iterable[int],
    last: int | None = None,
    *,
    begun: int | None = None,
    repeats_last: bool = False,
    at_most: int | None = None,
) -> Iterator[int]:
    """Yield the epochs that are left to train, reading no epoch beyond them.

    Parameters
    ----------
    epochs : iterable of int
        All epochs.
    last : int, optional
        The epoch that was begun last; None where none was.
    begun : int, optional
        How many were begun. Where epoch number ``begun`` is not ``last``, these are other epochs
        than before, and all up to ``last`` are skipped.
    repeats_last : bool
        Whether the last one was not completed.
    at_most : int, optional
        The largest number of epochs to yield.

    Examples
    --------
    >>> list(epochs_left(range(1, 10), last=3, at_most=2))
    [4, 5]
    >>> list(epochs_left([5, 3, 3, 1], last=3, begun=2))
    [3, 1]
    >>> list(epochs_left([5, 3, 3, 1], last=3, begun=2, repeats_last=True))
    [3, 3, 1]
    """
    iterator = iter(epochs)
    first = [] if last is None else list(islice(iterator, begun or 0))
    left: Iterable[int]
    if last is None:
        left = iterator
    elif first and len(first) == begun and first[-1] == last:
        left = chain(first[-1:] if repeats_last else (), iterator)
    else:
        done = last - repeats_last
        left = (epoch for epoch in chain(first, iterator) if epoch > done)
    yield from islice(left, at_most)


def count_epochs(epochs: Any, begun: int | None, **position: Any) -> int | None:
    """Return the number of epochs of a whole fit, those done before a restart included.

    Parameters
    ----------
    epochs : iterable of int
        An epoch counter, or a collection of numbers.
    begun : int, optional
        How many were begun before the restart.
    **position
        Further arguments of `epochs_left`.

    Returns
    -------
    int or None
        None for an iterator: counting its numbers would use them up.

    Examples
    --------
    >>> count_epochs(range(1, 10), 3, last=3, repeats_last=True)
    9
    """
    numbers = range(epochs.current + 1, epochs.limit + 1) if is_epoch_counter(epochs) else epochs
    if not isinstance(numbers, Collection):
        return None
    done = (begun or 0) - bool(position.get("repeats_last"))
    return max(0, done) + sum(1 for _ in epochs_left(numbers, begun=begun, **position))


def improves(metric: float, best: float, direction: str, min_delta: float) -> bool:
    """Return whether a metric is better than the best by more than ``min_delta`` of its size.

    Examples
    --------
    >>> improves(0.5, 0.5, "max", 1e-6), improves(-2.0, -1.0, "min", 1e-6)
    (False, True)
    """
    margin = min_delta * abs(best) if math.isfinite(best) else 0.0
    return metric < best - margin if direction == "min" else metric > best + margin
