"""One pass over the data, as the loop sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Batches"]

T = TypeVar("T")
_UNMARKED = (False, 0)


class Batches(Generic[T]):
    """Iterate over batches, able to tell whether another one follows.

    Asking fetches the next batch early, so a loader's own count of what it has handed out is one
    ahead until that batch is taken. The loop asks only inside an accumulation window, and saves
    only at its border: there the loader's count is right.

    Parameters
    ----------
    batches : iterable
        A loader; iterating over it begins here.
    limit : int, optional
        End after this many, as if the data ended.

    Attributes
    ----------
    is_filler : bool
        Whether the batch taken last is one that another rank has too, see `SaveableDataLoader`.
    fillers : int
        How many of the ranks have such a one at the same time.
    """

    def __init__(self, batches: Iterable[T], limit: int | None = None) -> None:
        self._iterator = iter(batches)
        # A loader speaks of the batch handed out last, which may not be the one taken last.
        self._marks: Any = batches if getattr(batches, "last_round", None) == "fill" else None
        self._held: list[tuple[T, tuple[bool, int]]] = []
        self.is_filler, self.fillers = _UNMARKED
        self._left = limit

    def __iter__(self) -> Iterator[T]:
        """Return itself."""
        return self

    def __next__(self) -> T:
        """Take the next batch."""
        if self._left == 0:
            raise StopIteration
        batch, (self.is_filler, self.fillers) = self._held.pop() if self._held else self._fetch()
        if self._left is not None:
            self._left -= 1
        return batch

    def has_next(self) -> bool:
        """Whether another batch follows; fetches it to find out."""
        if self._left == 0:
            return False
        if not self._held:
            try:
                self._held.append(self._fetch())
            except StopIteration:
                return False
        return True

    def close(self) -> None:
        """Let go of the loader's iterator, whose workers end with it and not with a traceback."""
        self._iterator = iter(())
        self._held.clear()

    def skip(self, count: int) -> None:
        """Take ``count`` batches and drop them, to resume a loader that cannot seek."""
        for _ in range(count):
            if next(self._iterator, self) is self:
                return

    def _fetch(self) -> tuple[T, tuple[bool, int]]:
        """Take the next batch from the loader, with what it says of it."""
        batch, marks = next(self._iterator), self._marks
        return batch, _UNMARKED if marks is None else (marks.is_filler, marks.fillers)
