"""One pass over the data, as the loop sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Batches"]

T = TypeVar("T")


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
    """

    def __init__(self, batches: Iterable[T], limit: int | None = None) -> None:
        self._iterator = iter(batches)
        self._held: list[T] = []
        self._left = limit

    def __iter__(self) -> Iterator[T]:
        """Return itself."""
        return self

    def __next__(self) -> T:
        """Take the next batch."""
        if self._left == 0:
            raise StopIteration
        batch = self._held.pop() if self._held else next(self._iterator)
        if self._left is not None:
            self._left -= 1
        return batch

    def has_next(self) -> bool:
        """Whether another batch follows; fetches it to find out."""
        if self._left == 0:
            return False
        if not self._held:
            try:
                self._held.append(next(self._iterator))
            except StopIteration:
                return False
        return True

    def skip(self, count: int) -> None:
        """Take ``count`` batches and drop them, to resume a loader that cannot seek."""
        for _ in range(count):
            if next(self._iterator, self) is self:
                return
