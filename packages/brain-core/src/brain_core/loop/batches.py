"""The batches of one pass, with a check whether another batch follows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Batches"]

T = TypeVar("T")
_NOT_PADDED = (False, 0)


class Batches(Generic[T]):
    """An iterator over a loader's batches with a check whether another batch follows.

    `has_next` fetches the next batch early, so the loader's position is one batch ahead until that
    batch is returned. The loop calls it only inside an accumulation window and saves only at a step
    boundary, where the loader's position is right.

    Parameters
    ----------
    batches : iterable
        A loader. Its iterator is created here.
    limit : int, optional
        End after this many batches, as if the data ended.
    watch : callable, optional
        Takes the loader's iterator and returns one that gives the same batches.

    Attributes
    ----------
    is_padding : bool
        Whether the batch returned last is a copy of another rank's; see `SaveableDataLoader`.
    padding_batches : int
        The number of ranks whose current batch is such a copy.
    """

    def __init__(
        self,
        batches: Iterable[T],
        limit: int | None = None,
        watch: Callable[[Iterator[T]], Iterator[T]] | None = None,
    ) -> None:
        self._iterator = iter(batches) if watch is None else watch(iter(batches))
        # The loader describes the batch it returned last, which `has_next` may have fetched early.
        self._padded_loader: Any = (
            batches if getattr(batches, "last_round", None) == "pad" else None
        )
        self._fetched: list[tuple[T, tuple[bool, int]]] = []
        self.is_padding, self.padding_batches = _NOT_PADDED
        self._left = limit

    def __iter__(self) -> Iterator[T]:
        """Return the iterator itself."""
        return self

    def __next__(self) -> T:
        """Return the next batch."""
        if self._left is not None:
            if self._left == 0:
                raise StopIteration
            self._left -= 1
        if self._padded_loader is None and not self._fetched:  # by far the most calls
            return next(self._iterator)
        fetched = self._fetched.pop() if self._fetched else self._fetch()
        batch, (self.is_padding, self.padding_batches) = fetched
        return batch

    def has_next(self) -> bool:
        """Return whether another batch follows, which fetches it."""
        if self._left == 0:
            return False
        if not self._fetched:
            try:
                self._fetched.append(self._fetch())
            except StopIteration:
                return False
        return True

    def close(self) -> None:
        """Drop the loader's iterator, so that its workers end now."""
        self._iterator = iter(())
        self._fetched.clear()

    def skip(self, count: int) -> None:
        """Read ``count`` batches and drop them, to resume a loader that cannot seek."""
        for _ in range(count):
            if next(self._iterator, self) is self:
                return

    def _fetch(self) -> tuple[T, tuple[bool, int]]:
        """Return the loader's next batch, and whether it is padding."""
        batch, loader = next(self._iterator), self._padded_loader
        return batch, _NOT_PADDED if loader is None else (loader.is_padding, loader.padding_batches)
