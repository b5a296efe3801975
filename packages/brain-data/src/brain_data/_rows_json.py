"""Finding the rows of a large JSON manifest without parsing them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._manifest import load_data_json
from ._rows import PACK_BYTES, JsonRows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._rows import Bytes, Places

_CHUNK_BYTES = 2**20
_BLOCK_ROWS = 2**15
_WORD = 8  # IDs are hashed by words of so many bytes
_LONGEST_GAP = 32  # between two rows; more white space than this is read the slow way
_QUOTE, _OPEN, _CLOSE = 1, 2, 3
_SPACES = np.frombuffer(b" \t\r\n", np.uint8)


def read_json_rows(
    json_path: str | os.PathLike[str], replacements: Mapping[str, Any] | None = None
) -> Mapping[str, Mapping[str, Any]]:
    """Read a JSON manifest: a small one into dicts, a large one as bytes.

    A large file is looked through once for where its rows begin and end, and for IDs that come
    twice; a row is parsed when it is asked for. Whatever does not look like a mapping of mappings
    is parsed in the ordinary way, which says what is wrong with it.
    """
    size = os.stat(json_path).st_size
    if size >= PACK_BYTES:
        # buffer: the file and a word of nothing, so that the words of the last ID can be read
        buffer = np.empty(size + _WORD, np.uint8)
        buffer[size:] = 0
        with open(json_path, "rb") as file:
            read = file.readinto(buffer[:size].data)
        found = _find_rows(buffer, read) if read == size else None
        if found is not None:
            starts, ends, braces = found
            # Without a brace in any string there is nothing to put in.
            given = (replacements or {}) if braces else None
            return JsonRows(buffer, starts, ends, json_path, given)
    return load_data_json(json_path, replacements)


def _find_rows(buffer: Bytes, size: int) -> tuple[Places, Places, bool] | None:
    """Find where each ``"uid": {...}`` begins and ends; None for anything out of the ordinary."""
    scan = _Scan(buffer, size)
    if not scan.run():
        return None
    # key_starts, key_ends: (rows,) the two quotes of each ID; row_starts, row_ends: its braces
    key_starts, key_ends, row_starts, row_ends = scan.places()
    rows = len(row_starts)
    if not rows or not len(key_starts) == len(key_ends) == len(row_ends) == rows:
        return None
    edges = np.array([[scan.first, key_starts[0]], [row_ends[-1], scan.last]])
    if not _only(buffer, edges[:, 0], edges[:, 1], b""):
        return None
    hashes = np.empty(rows, np.uint64)
    for block in (slice(at, at + _BLOCK_ROWS) for at in range(0, rows, _BLOCK_ROWS)):
        # A block at a time, so that what is worked out on the way stays small.
        keys, colons, opens, closes = (
            places[block].astype(np.int64)
            for places in (key_starts, key_ends, row_starts, row_ends)
        )
        following = key_starts[block.start + 1 : block.stop + 1].astype(np.int64)
        ordinary = (
            (buffer[opens] == ord("{")).all()
            and (buffer[closes] == ord("}")).all()
            and _only(buffer, colons, opens, b":")
            and _only(buffer, closes[: len(following)], following, b",")
        )
        if not ordinary:
            return None
        hashes[block] = _hashes(buffer, keys + 1, colons)
    hashes.sort()
    if (hashes[1:] == hashes[:-1]).any():
        return None
    row_ends += row_ends.dtype.type(1)
    return key_starts.copy(), row_ends, scan.braces


class _Scan:
    """One pass over the bytes, a chunk at a time: quotes and brackets, and how deep they lie."""

    def __init__(self, buffer: Bytes, size: int) -> None:
        self.braces = False
        self.first = self.last = -1
        self._buffer = buffer
        self._size = size
        self._kind: Any = np.uint32 if size < 2**32 else np.int64
        self._in_string = 0
        self._depth = 0
        self._found: list[tuple[Places, Places, Places]] = []

    def run(self) -> bool:
        """Look through all chunks; False when the brackets do not match as they should."""
        start = 3 if self._buffer[:3].tobytes() == b"\xef\xbb\xbf" else 0
        origin = start
        while start < self._size:
            stop = min(start + _CHUNK_BYTES, self._size)
            # A backslash and what it escapes stay in one chunk.
            while stop < self._size and self._buffer[stop - 1] == ord("\\"):
                stop += 1
            if not self._chunk(start, stop):
                return False
            start = stop
        outside = self._buffer[origin : max(self.first, origin)]
        rest = self._buffer[self.last + 1 : self._size]
        return (
            self._depth == 0
            and self._in_string == 0
            and self.last >= 0
            and self._buffer[self.first] == ord("{")
            and self._buffer[self.last] == ord("}")
            and bool(np.isin(outside, _SPACES).all() and np.isin(rest, _SPACES).all())
        )

    def places(self) -> tuple[Places, Places, Places, Places]:
        """Give the positions of the IDs' quotes, and of the rows' brackets."""
        quotes, starts, ends = (np.concatenate(parts) for parts in zip(*self._found, strict=True))
        return quotes[::2], quotes[1::2], starts, ends

    def _chunk(self, start: int, stop: int) -> bool:
        raw = self._buffer[start:stop].tobytes()
        if b"\\" in raw:
            # Pairs first: what remains of a run of backslashes then escapes what follows it.
            raw = raw.replace(b"\\\\", b"__").replace(b'\\"', b"__")
        marks = np.frombuffer(raw.translate(_MARKS), np.uint8)
        # at: (marks,) positions in the chunk; kinds: (marks,) what stands there
        at = np.flatnonzero(marks != 0)
        kinds = marks[at]
        if not len(at):
            return True
        quote = kinds == _QUOTE
        inside = np.bitwise_xor.accumulate(quote.view(np.uint8)) ^ np.uint8(self._in_string)
        self._in_string = int(inside[-1])
        within = inside.view(np.bool_)
        self._look_for_braces(raw, at[within & ~quote])
        # A quote is at the depth of the last bracket before it.
        bracket = ~(quote | within)
        change = np.zeros(len(at), np.int32)
        change[bracket] = np.where(kinds[bracket] == _OPEN, 1, -1)
        depth = np.cumsum(change, dtype=np.int32) + np.int32(self._depth)
        self._depth = int(depth[-1])
        if depth.min() < 0:
            return False
        opens = bracket & (kinds == _OPEN)
        closes = bracket & (kinds == _CLOSE)
        self._note_ends(at[opens & (depth == 1)], at[closes & (depth == 0)], start)
        chosen = (quote & (depth == 1), opens & (depth == 2), closes & (depth == 1))  # noqa: PLR2004
        quotes, starts, ends = ((at[one] + start).astype(self._kind) for one in chosen)
        self._found.append((quotes, starts, ends))
        return True

    def _look_for_braces(self, raw: bytes, at: Places) -> None:
        if not self.braces and len(at):
            held = np.frombuffer(raw, np.uint8)[at]
            self.braces = bool(((held == ord("{")) | (held == ord("}"))).any())

    def _note_ends(self, opened: Places, closed: Places, start: int) -> None:
        if len(opened):
            self.first = int(opened[0]) + start if self.first < 0 else self.first
        if len(closed):
            self.last = int(closed[-1]) + start


def _only(buffer: Bytes, left: Places, right: Places, wanted: bytes) -> bool:
    """Tell whether, between two places, there are white space and one `wanted` byte only."""
    if not len(left):
        return True
    gaps = right - left - 1
    if gaps.min() < len(wanted) or gaps.max() > _LONGEST_GAP:
        return False
    seen = np.zeros(len(gaps), np.int8)
    for step in range(int(gaps.max())):
        here = gaps > step
        held = buffer[left[here] + 1 + step]
        hit = held == (wanted[0] if wanted else 0)
        if not (hit | np.isin(held, _SPACES)).all():
            return False
        seen[here] += hit
    return bool((seen == len(wanted)).all())


def _hashes(buffer: Bytes, starts: Places, ends: Places) -> npt.NDArray[np.uint64]:
    """Hash byte strings to 64 bits each."""
    # words[p] is the 8 bytes at p as one number, at any p
    words = np.ndarray((len(buffer) - _WORD + 1,), "<u8", buffer.data, 0, (1,))
    lengths = (ends - starts).astype(np.uint64)
    hashes: npt.NDArray[np.uint64] = lengths * np.uint64(0x9E3779B97F4A7C15)
    left = np.arange(len(starts))
    done = 0
    while len(left):
        held = np.minimum(lengths[left] - np.uint64(done), np.uint64(_WORD)).astype(np.intp)
        word = words[starts[left] + done] & _LOW_BYTES[held]
        mixed = (hashes[left] ^ word) * np.uint64(0xD6E8FEB86659FD93)
        hashes[left] = mixed ^ (mixed >> np.uint64(32))
        done += _WORD
        left = left[lengths[left] > done]
    return hashes


def _marks() -> bytes:
    table = bytearray(256)
    table[ord('"')] = _QUOTE
    table[ord("{")] = table[ord("[")] = _OPEN
    table[ord("}")] = table[ord("]")] = _CLOSE
    return bytes(table)


_MARKS = _marks()
# _LOW_BYTES[n] keeps the first n bytes of a word
_LOW_BYTES = np.array([(1 << 8 * n) - 1 for n in range(_WORD + 1)], np.uint64)
