"""Finding the rows of a large JSON manifest without parsing them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from brain_data.dataset.manifest import load_data_json
from brain_data.dataset.rows import PACK_BYTES, JsonRows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    import numpy.typing as npt

    from brain_data.dataset.rows import Bytes, Places

    Hashes = npt.NDArray[np.uint64]

_CHUNK_BYTES = 2**19  # what is worked out of a chunk stays in the cache
_WORD = 8  # IDs are hashed by words of so many bytes
_LONGEST_GAP = 32  # between two rows; more white space than this is read the slow way
_BOM = b"\xef\xbb\xbf"
_WHITE = b" \t\r\n"
_QUOTE, _ESCAPE = np.uint8(ord('"')), np.uint8(ord("\\"))
# One bit makes a brace of a bracket.
_FOLD, _OPEN, _CLOSE = np.uint8(0x20), np.uint8(ord("{")), np.uint8(ord("}"))


class _Part(NamedTuple):
    """The whole rows of a chunk: each from the quote of its ID to behind its brace."""

    starts: Places
    ends: Places
    hashes: Hashes
    braces: bool  # Whether a string has one, so that it may name a replacement.
    closed: int  # Where the brace stands that ends the file, or -1.


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
        found = _find_rows(buffer, size) if read == size else None
        if found is not None:
            starts, ends, braces = found
            # Without a brace in any string there is nothing to put in.
            given = (replacements or {}) if braces else None
            return JsonRows(buffer, starts, ends, json_path, given)
    return load_data_json(json_path, replacements)


def _find_rows(buffer: Bytes, size: int) -> tuple[Places, Places, bool] | None:
    """Find where each ``"uid": {...}`` begins and ends; None for anything out of the ordinary."""
    begin = _behind_first_brace(buffer, size)
    small = np.uint32 if size < 2**32 else np.int64
    # Grown in place: a list of small arrays, joined at the end, would leave its holes behind.
    starts, ends, hashes = bytearray(), bytearray(), bytearray()
    braces = False
    length = _CHUNK_BYTES
    closed = -1 if begin > 0 else size
    while closed < 0:
        # Each chunk begins behind a row: outside of strings, and one brace deep.
        stop = min(begin + length, size)
        while stop < size and buffer[stop - 1] == _ESCAPE:
            stop += 1  # A backslash and what it escapes stay in one chunk.
        part = _rows_of(buffer, begin, stop, first=not starts)
        if part is None or (stop == size and part.closed < 0):
            return None
        closed = part.closed
        if len(part.ends):
            begin, length = int(part.ends[-1]), _CHUNK_BYTES
            starts += part.starts.astype(small).data
            ends += part.ends.astype(small).data
            hashes += part.hashes.data
            braces = braces or part.braces
        else:
            length *= 2
    rest = buffer[closed + 1 : size].tobytes()
    if not starts or rest.strip(_WHITE) or buffer[begin:closed].tobytes().strip(_WHITE):
        return None
    order = np.frombuffer(hashes, np.uint64)
    order.sort()
    if (order[1:] == order[:-1]).any():  # Two IDs are equal, or as good as never, seem to be.
        return None
    return np.frombuffer(starts, small), np.frombuffer(ends, small), braces


def _behind_first_brace(buffer: Bytes, size: int) -> int:
    """Find where the first row may begin; 0 when the file begins with no brace."""
    head = buffer[: min(size, 4096)].tobytes()
    text = head.removeprefix(_BOM)
    text = text.lstrip(_WHITE)
    return len(head) - len(text) + 1 if text.startswith(b"{") else 0


def _rows_of(buffer: Bytes, begin: int, stop: int, *, first: bool) -> _Part | None:
    held = _without_escapes(buffer[begin:stop])
    folded = held | _FOLD
    # at: (marks,) where quotes, brackets and braces stand; mark: (marks,) which
    at = np.flatnonzero((held == _QUOTE) | (folded == _OPEN) | (folded == _CLOSE))
    mark = folded[at]
    quote = held[at] == _QUOTE
    # From a quote that opens a string up to the one that closes it an odd number has been seen.
    inside = np.bitwise_xor.accumulate(quote.view(np.uint8)).view(np.bool_)
    braces, in_string = False, inside & ~quote
    if in_string.any():
        braces = bool(_is_brace(held[at[in_string]]).any())
        kept = ~in_string
        at, mark, quote, inside = at[kept], mark[kept], quote[kept], inside[kept]
    # bracket: indices into at of those outside of strings; depth: how deep each leads
    bracket = np.flatnonzero(~(quote | inside))
    opening = mark[bracket] == _OPEN
    depth = 1 + np.cumsum(np.where(opening, 1, -1))
    end = np.flatnonzero(depth == 0)
    if len(end):
        bracket, opening, depth = bracket[: end[0]], opening[: end[0]], depth[: end[0]]
    closed = int(at[np.flatnonzero(~(quote | inside))[end[0]]]) + begin if len(end) else -1
    closes = bracket[~opening & (depth == 1)]
    opens = bracket[opening & (depth == 2)][: len(closes)]  # noqa: PLR2004 - a row
    # The two marks before a row are the quotes of its ID, and before these ends the former row.
    before = np.concatenate([[-1], closes[:-1]])[: len(closes)]
    if not ((opens - before == 3).all() and quote[opens - 1].all()):  # noqa: PLR2004
        return None
    if not (_is_brace(held[at[opens]]).all() and _is_brace(held[at[closes]]).all()):
        return None
    at += begin
    ids, colons, rows, ends = at[before + 1], at[before + 2], at[opens], at[closes]
    former = np.concatenate([[begin - 1], ends[:-1]])[: len(ends)]
    plain = _only(buffer, colons, rows, b":") and (
        (_only(buffer, former[:1], ids[:1], b"") and _only(buffer, former[1:], ids[1:], b","))
        if first
        else _only(buffer, former, ids, b",")
    )
    if not plain:
        return None
    return _Part(ids, ends + 1, _hashes(buffer, ids + 1, colons), braces, closed)


def _without_escapes(chunk: Bytes) -> Bytes:
    """Put something harmless for what is escaped by a backslash, byte for byte."""
    if not (chunk == _ESCAPE).any():
        return chunk
    # Pairs first: what remains of a run of backslashes then escapes what follows it.
    text = chunk.tobytes().replace(b"\\\\", b"__").replace(b'\\"', b"__")
    return np.frombuffer(text, np.uint8)


def _is_brace(marks: Bytes) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = (marks == _OPEN) | (marks == _CLOSE)
    return found


def _only(buffer: Bytes, left: Places, right: Places, wanted: bytes) -> bool:
    """Tell whether, between two places, there are white space and one `wanted` byte only."""
    if not len(left):
        return True
    gaps = right - left - 1
    shortest, longest = int(gaps.min()), int(gaps.max())
    if shortest < len(wanted) or longest > _LONGEST_GAP:
        return False
    seen = np.zeros(len(gaps), np.int8)
    for step in range(longest):
        here = slice(None) if step < shortest else gaps > step
        held = buffer[left[here] + 1 + step]
        hit = held == (wanted[0] if wanted else 0)
        if not (hit | np.isin(held, _SPACES)).all():
            return False
        seen[here] += hit
    return bool((seen == len(wanted)).all())


def _hashes(buffer: Bytes, starts: Places, ends: Places) -> Hashes:
    """Hash byte strings to 64 bits each."""
    # words[p] is the 8 bytes at p as one number, at any p
    words = np.ndarray((len(buffer) - _WORD + 1,), "<u8", buffer.data, 0, (1,))
    lengths = ends - starts
    hashes: Hashes = lengths.astype(np.uint64)
    left = np.arange(len(starts))
    done = 0
    while len(left):
        held = np.minimum(lengths[left] - done, _WORD)
        word = words[starts[left] + done] & _LOW_BYTES[held]
        # A word is mixed before it is joined: IDs that count up differ in few bits.
        hashes[left] = _mixed(hashes[left] * _ODD ^ _mixed(word))
        done += _WORD
        left = left[lengths[left] > done]
    return hashes


def _mixed(words: Hashes) -> Hashes:
    """Spread each bit over the word (David Stafford's thirteenth mix of MurmurHash3's)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words


_ODD = np.uint64(0x9E3779B97F4A7C15)
_SPACES = np.frombuffer(_WHITE, np.uint8)
# _LOW_BYTES[n] keeps the first n bytes of a word
_LOW_BYTES = np.array([(1 << 8 * n) - 1 for n in range(_WORD + 1)], np.uint64)
