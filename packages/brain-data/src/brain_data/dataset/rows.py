"""Rows kept as bytes in NumPy arrays, which forked workers share.

A Python object is written to whenever it is looked at (its reference count), so a worker that walks
through a million dicts copies every page of them. An array of bytes is only read.
"""

from __future__ import annotations

import json
import marshal
import operator
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from brain_data.dataset.manifest import DuplicateKeyError, format_row, read_csv_rows, unique_keys
from brain_data.errors import ManifestError, ManifestKeyError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]
    Places = npt.NDArray[np.integer[Any]]

# From so many rows on a mapping given in code is packed: below it, a worker that copies all of it
# costs less than the longer way to a row.
PACK_ROWS = 50_000
# ... and so does a file from this size on.
PACK_BYTES = 4 * 2**20

_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})
_SIDES: tuple[Any, Any] = ("left", "right")
_parse = json.JSONDecoder(object_pairs_hook=unique_keys).raw_decode


class RowStore(Mapping[Any, Mapping[str, Any]]):
    """Rows by ID and by position. A row is made when it is asked for, and is the caller's.

    ``store[uid]`` gives a row that cannot be written to, since the write would be lost.
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
        """Return the position of the row `uid`; KeyError when there is none."""

    def item_keys(self) -> list[str]:
        """List the keys of the rows' items, ``"id"`` among them."""
        return list(self.row_at(0))

    def __getitem__(self, uid: Any) -> Mapping[str, Any]:
        """Return the row `uid`, without its ID, to read."""
        row = self.row_at(self.find(uid))
        del row["id"]
        return MappingProxyType(row)

    def __contains__(self, uid: object) -> bool:
        """Tell whether there is a row `uid`."""
        try:
            self.find(uid)
        except KeyError:
            return False
        return True

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the IDs."""
        return map(self.id_at, range(len(self)))


class RowIds(Sequence[Any]):
    """IDs of some rows of a store in some order, without a list of them.

    Parameters
    ----------
    rows : RowStore
    order : array of int, optional
        Positions in the store; all of them in their own order if left out.
    """

    def __init__(self, rows: RowStore, order: Places | None = None) -> None:
        self.rows = rows
        self.order = order
        self._length = len(rows) if order is None else len(order)

    def __len__(self) -> int:
        """Count the rows."""
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
        return self.rows.id_at(self._place(index))

    def row(self, index: int) -> dict[str, Any]:
        """Return a new dict of the row at `index`, with its ID."""
        return self.rows.row_at(self._place(index))

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
        """Show the first few."""
        shown = ", ".join(map(repr, islice(self, 3)))
        return f"<{len(self)} row IDs: {shown}{', ...' if len(self) > 3 else ''}>"  # noqa: PLR2004

    def _place(self, index: int) -> int:
        place = operator.index(index)
        if place < 0:
            place += self._length
        if not 0 <= place < self._length:
            raise IndexError(
                f"A row's index must be from 0 to {self._length - 1}; got {index}: check the "
                "sampler."
            )
        return place if self.order is None else self.order.item(place)


class PackedRows(RowStore):
    """Rows as slices of one array of bytes.

    Parameters
    ----------
    buffer : array of uint8
        With at least 8 bytes behind the last row.
    starts, ends : array of int, shape ``(rows,)``
        Row i is ``buffer[starts[i]:ends[i]]``.
    source : object
        Where the rows come from, for errors.
    """

    def __init__(self, buffer: Bytes, starts: Places, ends: Places, source: object) -> None:
        self.source = source
        self._buffer = buffer
        self._starts = starts
        self._ends = ends
        self._index: _Index | None = None

    def __len__(self) -> int:
        """Count the rows."""
        return len(self._starts)

    def find(self, uid: Any) -> int:
        """Return the position of the row `uid`; builds an index of all IDs the first time."""
        if self._index is None:
            self._index = _Index(self)
        for place in self._index.candidates(uid):
            if self.id_at(place) == uid:
                return place
        raise missing_row(uid, self.source)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the index behind: Python hashes strings in another way in another process."""
        return {**self.__dict__, "_index": None}

    def nbytes(self) -> int:
        """Count the bytes that the rows take up in memory."""
        return self._buffer.nbytes + self._starts.nbytes + self._ends.nbytes

    def _bytes_at(self, index: int) -> memoryview:
        return self._buffer[self._starts[index] : self._ends[index]].data


class JsonRows(PackedRows):
    """Rows as they stand in a JSON file: ``"uid": {...}``, parsed when one is asked for.

    Parameters
    ----------
    replacements : mapping or None
        What strings are formatted with; None when no string of the file has a brace.
    """

    def __init__(
        self,
        buffer: Bytes,
        starts: Places,
        ends: Places,
        source: object,
        replacements: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(buffer, starts, ends, source)
        self._replacements = replacements

    def id_at(self, index: int) -> str:
        """Return the ID of the row at `index`."""
        return str(_parse(str(self._bytes_at(index), "utf-8"))[0])

    def row_at(self, index: int) -> dict[str, Any]:
        """Parse the row at `index`."""
        text = str(self._bytes_at(index), "utf-8")
        uid, end = _parse(text)
        try:
            row, end = _parse(text, text.index("{", end))
        except DuplicateKeyError as error:
            raise ManifestError(
                f"Each key of a row must be there once; row {uid!r} of {self.source} has "
                f"{error.args[0]!r} twice: rename or remove one of them."
            ) from None
        except ValueError as error:
            raise ManifestError(
                f"Each row of a JSON manifest must be valid JSON; row {uid!r} of {self.source} is "
                f"not ({error}): {text[:200]!r}. Correct it there."
            ) from error
        assert end == len(text)
        if self._replacements is not None:
            row = format_row(uid, row, self._replacements, self.source)
        if "id" in row:
            raise own_id(uid, row, self.source)
        row["id"] = uid
        return row  # type: ignore[no-any-return]  # it began with a brace


class MarshalledRows(PackedRows):
    """Rows of plain values, each as the standard library's marshal writes it."""

    def __init__(self, pairs: Iterable[tuple[Any, Mapping[str, Any]]], source: object) -> None:
        packed = bytearray()
        ends = []
        dumps = marshal.dumps
        for pair in pairs:
            packed += dumps(pair)  # type: ignore[arg-type]  # what it cannot write raises
            ends.append(len(packed))
        places = np.array(ends, dtype=np.int64)
        starts = np.concatenate([np.zeros(min(1, len(places)), np.int64), places[:-1]])
        super().__init__(np.frombuffer(packed, np.uint8), starts, places, source)

    def id_at(self, index: int) -> Any:
        """Return the ID of the row at `index`."""
        return marshal.loads(self._bytes_at(index))[0]  # noqa: S302 - written by this process

    def row_at(self, index: int) -> dict[str, Any]:
        """Unpack the row at `index`."""
        uid, row = marshal.loads(self._bytes_at(index))  # noqa: S302 - written by this process
        if "id" in row:
            raise own_id(uid, row, self.source)
        row["id"] = uid
        return row  # type: ignore[no-any-return]  # a dict was written


class _Index:
    """Positions of IDs, by their hashes."""

    def __init__(self, rows: RowStore) -> None:
        hashes = np.fromiter(map(hash, rows), np.int64, len(rows))
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def candidates(self, uid: Any) -> list[int]:
        """List the positions whose IDs have the hash of `uid`."""
        first, last = (np.searchsorted(self._hashes, hash(uid), side) for side in _SIDES)
        return list(self._order[first:last].tolist())


def packed_if_large(
    data: Mapping[Any, Mapping[str, Any]], source: object = None
) -> Mapping[Any, Mapping[str, Any]]:
    """Pack a large dict of plain values, when there is nothing in it that packing would change."""
    if type(data) is not dict or len(data) < PACK_ROWS:
        return data
    if not all(_is_plain_row(uid, row) for uid, row in data.items()):
        return data
    return MarshalledRows(data.items(), source)


def pack_csv_rows(
    csv_path: str | os.PathLike[str], replacements: Mapping[str, Any] | None = None
) -> Mapping[str, Mapping[str, Any]]:
    """Read a CSV manifest: a small one into dicts, a large one as bytes."""
    rows = read_csv_rows(csv_path, replacements)
    if os.stat(csv_path).st_size < PACK_BYTES:
        return dict(rows)
    return MarshalledRows(rows, csv_path)


def own_id(uid: object, row: Iterable[str], source: object) -> ManifestError:
    """Refuse a row with an item "id" of its own, which would hide its ID."""
    where = f" of {source}" if source is not None else ""
    return ManifestError(
        f"The key 'id' is for the ID of the row; row {uid!r}{where} has one of its own among "
        f"{list(row)!r}: rename it."
    )


def missing_row(uid: object, source: object) -> ManifestKeyError:
    """Say that there is no such row."""
    where = f" of {source}" if source is not None else ""
    return ManifestKeyError(f"There is no row {uid!r}{where}.")


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
    return kind is dict and all(_is_plain(key) and _is_plain(one) for key, one in value.items())
