"""Rows by ID and by position, and sequences of their IDs."""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from brain_data.errors import ManifestError, ManifestKeyError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]
    Positions = npt.NDArray[np.integer[Any]]


class RowStore(Mapping[Any, Mapping[str, Any]]):
    """Rows by ID and by position; each access creates a new dict.

    ``store[uid]`` is read-only, since a write would be lost.
    """

    source: object = None

    @abstractmethod
    def id_at(self, index: int) -> Any:
        """Return the ID of the row at `index`."""

    @abstractmethod
    def row_at(self, index: int) -> dict[str, Any]:
        """Return a new dict of the row at `index`, with its ID as the item ``"id"``."""

    @abstractmethod
    def find(self, uid: Any) -> int:
        """Return the position of the row `uid`; raise KeyError if there is none."""

    def item_keys(self) -> list[str]:
        """Return the keys of the rows, ``"id"`` included."""
        return list(self.row_at(0))

    def __getitem__(self, uid: Any) -> Mapping[str, Any]:
        """Return the row `uid`, without its ID, read-only."""
        row = self.row_at(self.find(uid))
        del row["id"]
        return MappingProxyType(row)

    def __contains__(self, uid: object) -> bool:
        """Return whether there is a row `uid`."""
        try:
            self.find(uid)
        except KeyError:
            return False
        return True

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the IDs."""
        return map(self.id_at, range(len(self)))


class RowIds(Sequence[Any]):
    """The IDs of some rows of a store in some order, as a sequence without a list.

    Parameters
    ----------
    rows : RowStore
    order : array of int, optional
        Positions in the store; default: all of them.
    """

    def __init__(self, rows: RowStore, order: Positions | None = None) -> None:
        self.rows = rows
        self.order = order
        self._length = len(rows) if order is None else len(order)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._length

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> RowIds: ...
    def __getitem__(self, index: int | slice) -> Any:
        """Return the ID at `index`, or the IDs of a slice."""
        if isinstance(index, slice):
            if self.order is None:
                return RowIds(self.rows, np.arange(self._length, dtype=np.int64)[index])
            return RowIds(self.rows, self.order[index])
        return self.rows.id_at(self._position(index))

    def row(self, index: int) -> dict[str, Any]:
        """Return a new dict of the row at `index`, with its ID."""
        return self.rows.row_at(self._position(index))

    def take(self, indices: Sequence[int]) -> RowIds:
        """Return the IDs at `indices`."""
        chosen = np.asarray(indices, dtype=np.int64)
        return RowIds(self.rows, chosen if self.order is None else self.order[chosen])

    def __eq__(self, other: object) -> bool:
        """Compare with another sequence of IDs."""
        if not isinstance(other, (RowIds, list, tuple)):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # like a list

    def __repr__(self) -> str:
        """Return the number of IDs and the first three."""
        shown = ", ".join(map(repr, islice(self, 3)))
        return f"<{len(self)} row IDs: {shown}{', ...' if len(self) > 3 else ''}>"  # noqa: PLR2004

    def _position(self, index: int) -> int:
        position = operator.index(index)
        if position < 0:
            position += self._length
        if not 0 <= position < self._length:
            raise IndexError(
                f"A row's index must be from 0 to {self._length - 1}; got {index}: check the "
                "sampler."
            )
        return position if self.order is None else self.order.item(position)


def reserved_id_error(uid: object, row: Iterable[str], source: object) -> ManifestError:
    """Return the error for a row that has an item "id", which would hide its ID."""
    where = f" of {source}" if source is not None else ""
    return ManifestError(
        f"The key 'id' is reserved for the ID of the row; row {uid!r}{where} has such a key among "
        f"{list(row)!r}: rename it."
    )


def missing_row_error(uid: object, source: object) -> ManifestKeyError:
    """Return the error for an ID that no row has."""
    where = f" of {source}" if source is not None else ""
    return ManifestKeyError(f"There is no row {uid!r}{where}.")
