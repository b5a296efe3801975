"""An epoch as one list of micro-batches, independent of the number of ranks.

Everything here is a pure function of integers: no rank, no clock and no global generator is read.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np

if TYPE_CHECKING:  # numpy.typing takes a while to import
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from brain_data.order.keyed import KeyedOrder

    Ints = npt.NDArray[Any]
    """Integers of 64 bits, or of 32 where that is enough."""
    Floats = npt.NDArray[np.float64]


class EvenBounds:
    """The bounds of batches of one size, ``[num_batches + 1]``, computed where they are indexed.

    Parameters
    ----------
    num_batches
        The number of batches.
    batch_size
        The rows of each batch.
    num_samples
        The rows of all batches: the last one may have fewer.
    """

    def __init__(self, num_batches: int, batch_size: int, num_samples: int) -> None:
        self._indices = range(num_batches + 1)
        self._batch_size = batch_size
        self._num_samples = num_samples

    def __len__(self) -> int:
        """Return the number of bounds, one more than the batches."""
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice | Ints) -> Ints: ...

    def __getitem__(self, index: Any) -> Any:
        """Return the bound of an index, or those of a slice or an array of indices: int64."""
        if isinstance(index, slice):
            part = self._indices[index]
            index = np.arange(part.start, part.stop, part.step, dtype=np.int64)
        if isinstance(index, np.ndarray):
            return np.minimum(index * self._batch_size, self._num_samples)
        return min(self._indices[index] * self._batch_size, self._num_samples)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Ints:
        """Return all bounds."""
        bounds: Ints = self[:]
        return bounds if dtype is None else bounds.astype(dtype)


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """One epoch: rows in the order of training, split into micro-batches.

    Parameters
    ----------
    order
        The rows, ``[num_samples]``: an array of integers, a `KeyedOrder`, or a list if a sampler
        yields other keys.
    bounds
        ``[num_batches + 1]``, int64. Micro-batch ``i`` is ``order[bounds[i]:bounds[i + 1]]``.
    lengths
        The length of each row of the data, ``[rows]``, for batches of varying size; None for
        batches of one size. It decides how an incomplete round is split, see `ShardedPlan`.
    """

    order: Ints | Sequence[Any] | KeyedOrder
    bounds: Ints | EvenBounds
    lengths: Floats | None = None

    @property
    def num_batches(self) -> int:
        """The number of micro-batches in the epoch."""
        return len(self.bounds) - 1

    @property
    def num_samples(self) -> int:
        """The number of rows in all micro-batches."""
        return int(self.bounds[-1])

    def rows(self, low: int, high: int) -> list[Any]:
        """Return rows ``low`` to ``high`` of the order."""
        part = self.order[low:high]
        return part.tolist() if isinstance(part, np.ndarray) else list(part)

    def batch(self, index: int) -> list[Any]:
        """Return the rows of one micro-batch."""
        return self.rows(int(self.bounds[index]), int(self.bounds[index + 1]))

    def rows_at(self, places: Ints) -> list[Any]:
        """Return the rows of an array of places in the order."""
        if isinstance(self.order, (list, tuple, range)):
            return [self.order[place] for place in places.tolist()]
        rows: list[Any] = self.order[places].tolist()  # type: ignore[call-overload]  # an array
        return rows

    def row_lengths(self, low: int, high: int) -> Floats:
        """Return the lengths of rows ``low`` to ``high`` of the order."""
        assert self.lengths is not None  # called only for batches of varying size
        lengths: Floats = self.lengths[np.asarray(self.order[low:high])]
        return lengths

    def checksum(self) -> int:
        """Return a CRC-32 of the order and the bounds."""
        if isinstance(self.order, np.ndarray):
            crc = zlib.crc32(np.ascontiguousarray(self.order).data)
        else:
            crc = zlib.crc32(repr(list(self.order)).encode())
        return zlib.crc32(np.ascontiguousarray(self.bounds).data, crc)


def split_into_batches(
    order: Ints | Sequence[Any] | KeyedOrder, batch_size: int, *, drop_last: bool = False
) -> EpochPlan:
    """Return the plan of batches of one size; the last may be shorter, or dropped."""
    samples = len(order)
    batches = samples // batch_size if drop_last else -(-samples // batch_size)
    return EpochPlan(order, EvenBounds(batches, batch_size, samples))


def from_batches(batches: Iterable[Iterable[Any]]) -> EpochPlan:
    """Return the plan of batches that are listed one by one."""
    rows: list[Any] = []
    ends = [0]
    for batch in batches:
        rows.extend(batch)
        ends.append(len(rows))
    return EpochPlan(as_order(rows), np.asarray(ends, dtype=np.int64))


def as_order(rows: Sequence[Any]) -> Ints | Sequence[Any]:
    """Return rows as an int64 array if all are plain integers, else unchanged."""
    if all(type(row) is int for row in rows):
        return np.asarray(rows, dtype=np.int64)
    return rows
