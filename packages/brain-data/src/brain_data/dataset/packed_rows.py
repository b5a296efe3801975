"""Rows kept as bytes in NumPy arrays, which forked workers share.

Python writes to an object whenever it is accessed (its reference count), so a worker that iterates
over a million dicts copies all of their pages. An array of bytes is only read.
"""

from __future__ import annotations

import marshal
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_data.dataset.row_store import RowStore, missing_row_error, reserved_id_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from brain_data.dataset.row_store import Bytes, Positions

# A mapping given in code is packed from this number of rows on: below it, a worker that copies all
# of it costs less than the slower access to a row.
PACK_ROWS = 50_000
# A file is packed from this size on.
PACK_BYTES = 4 * 2**20

_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})
_SIDES: tuple[Any, Any] = ("left", "right")


class PackedRows(RowStore):
    """Rows as slices of one array of bytes.

    Parameters
    ----------
    buffer : array of uint8
        With at least 8 bytes after the last row.
    starts, ends : array of int, shape ``(rows,)``
        Row i is ``buffer[starts[i]:ends[i]]``.
    source : object
        The origin of the rows, for errors.
    """

    def __init__(self, buffer: Bytes, starts: Positions, ends: Positions, source: object) -> None:
        self.source = source
        self._buffer = buffer
        self._starts = starts
        self._ends = ends
        self._index: _Index | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._starts)

    def find(self, uid: Any) -> int:
        """Return the position of the row `uid`; the first call builds an index of all IDs."""
        if self._index is None:
            self._index = _Index(self)
        for position in self._index.candidates(uid):
            if self.id_at(position) == uid:
                return position
        raise missing_row_error(uid, self.source)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the index: string hashes differ between processes."""
        return {**self.__dict__, "_index": None}

    def nbytes(self) -> int:
        """Return the size of the rows in memory, in bytes."""
        return self._buffer.nbytes + self._starts.nbytes + self._ends.nbytes

    def bytes_at(self, index: int) -> memoryview:
        """Return the bytes of the row at `index`, without a copy."""
        return self._buffer[self._starts[index] : self._ends[index]].data


class MarshalledRows(PackedRows):
    """Rows of plain values, each serialized by the standard library's marshal."""

    def __init__(self, pairs: Iterable[tuple[Any, Mapping[str, Any]]], source: object) -> None:
        packed = bytearray()
        ends = []
        dumps = marshal.dumps
        for pair in pairs:
            packed += dumps(pair)  # type: ignore[arg-type]  # raises for other values
            ends.append(len(packed))
        row_ends = np.array(ends, dtype=np.int64)
        starts = np.concatenate([np.zeros(min(1, len(ends)), np.int64), row_ends[:-1]])
        super().__init__(np.frombuffer(packed, np.uint8), starts, row_ends, source)

    def id_at(self, index: int) -> Any:
        """Return the ID of the row at `index`."""
        return marshal.loads(self.bytes_at(index))[0]  # noqa: S302 - written by this process

    def row_at(self, index: int) -> dict[str, Any]:
        """Return a new dict of the row at `index`, with its ID."""
        uid, row = marshal.loads(self.bytes_at(index))  # noqa: S302 - written by this process
        if "id" in row:
            raise reserved_id_error(uid, row, self.source)
        row["id"] = uid
        return row  # type: ignore[no-any-return]  # the pair holds a dict


def packed_if_large(
    data: Mapping[Any, Mapping[str, Any]], source: object = None
) -> Mapping[Any, Mapping[str, Any]]:
    """Return a large dict of plain values packed, and anything else unchanged."""
    if type(data) is not dict or len(data) < PACK_ROWS:
        return data
    if not all(_is_plain_row(uid, row) for uid, row in data.items()):
        return data
    return MarshalledRows(data.items(), source)


class _Index:
    """The positions of IDs, found by their hashes."""

    def __init__(self, rows: RowStore) -> None:
        hashes = np.fromiter(map(hash, rows), np.int64, len(rows))
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def candidates(self, uid: Any) -> list[int]:
        """Return the positions whose IDs have the hash of `uid`."""
        first, last = (np.searchsorted(self._hashes, hash(uid), side) for side in _SIDES)
        return list(self._order[first:last].tolist())


def _is_plain_row(uid: Any, row: Any) -> bool:
    # marshal would write a NumPy number as bytes, so exact types only.
    if type(uid) not in _PLAIN or type(row) is not dict:
        return False
    return set(map(type, row.values())) <= _PLAIN or all(map(_is_plain, row.values()))


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is list or kind is tuple:
        return all(map(_is_plain, value))
    return kind is dict and all(_is_plain(key) and _is_plain(item) for key, item in value.items())
