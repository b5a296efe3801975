"""Finds the rows of a large JSON manifest without parsing them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from brain_data.dataset.row_store import Bytes, Positions

    Hashes = npt.NDArray[np.uint64]

WORD_BYTES = 8  # IDs are hashed in words of this size

_CHUNK_BYTES = 2**19  # the intermediate arrays of a chunk fit into the cache
_MAX_GAP = 32  # bytes between two rows; with more white space the file is parsed instead
_BOM = b"\xef\xbb\xbf"
_WHITE = b" \t\r\n"
_QUOTE, _ESCAPE = np.uint8(ord('"')), np.uint8(ord("\\"))
# One bit is the difference between a bracket and a brace.
_FOLD, _OPEN, _CLOSE = np.uint8(0x20), np.uint8(ord("{")), np.uint8(ord("}"))


class _Chunk(NamedTuple):
    """The complete rows of a chunk, each from the quote of its ID to the byte after its brace."""

    starts: Positions
    ends: Positions
    hashes: Hashes
    has_braces: bool  # Whether a string has a brace, so that it may name a replacement.
    closed_at: int  # The position of the brace that ends the file, or -1.


class _Structure(NamedTuple):
    """The quotes, brackets and braces of a chunk that are not inside a string."""

    at: Positions  # (marks,) positions in the chunk
    is_quote: npt.NDArray[np.bool_]  # (marks,)
    opens: Positions  # indices into `at` of the marks that open a row
    closes: Positions  # indices into `at` of the marks that close a row
    has_braces: bool
    closed_at: int  # position in the chunk of the brace that ends the file, or -1


def find_rows(buffer: Bytes, size: int) -> tuple[Positions, Positions, bool] | None:
    """Find the start and the end of each ``"uid": {...}``.

    Parameters
    ----------
    buffer
        The file, and at least one word of zeros after it.
    size
        The size of the file, in bytes.

    Returns
    -------
    tuple or None
        Starts and ends, shape ``(rows,)`` each, and whether a string has a brace. None if the file
        is anything but a mapping from unique IDs to mappings, or has unusual white space.
    """
    begin = _after_first_brace(buffer, size)
    dtype = np.uint32 if size < 2**32 else np.int64
    # Extended in place: a list of small arrays, concatenated at the end, would fragment the memory.
    starts, ends, hashes = bytearray(), bytearray(), bytearray()
    has_braces = False
    length = _CHUNK_BYTES
    closed_at = -1 if begin > 0 else size
    while closed_at < 0:
        # Each chunk begins after a row: outside of strings, inside one brace.
        stop = min(begin + length, size)
        while stop < size and buffer[stop - 1] == _ESCAPE:
            stop += 1  # A backslash and the character that it escapes stay in one chunk.
        chunk = _scan_chunk(buffer, begin, stop, is_first=not starts)
        if chunk is None or (stop == size and chunk.closed_at < 0):
            return None
        closed_at = chunk.closed_at
        if len(chunk.ends):
            begin, length = int(chunk.ends[-1]), _CHUNK_BYTES
            starts += chunk.starts.astype(dtype).data
            ends += chunk.ends.astype(dtype).data
            hashes += chunk.hashes.data
            has_braces = has_braces or chunk.has_braces
        else:
            length *= 2
    rest = buffer[closed_at + 1 : size].tobytes()
    if not starts or rest.strip(_WHITE) or buffer[begin:closed_at].tobytes().strip(_WHITE):
        return None
    ordered = np.frombuffer(hashes, np.uint64)
    ordered.sort()
    if (ordered[1:] == ordered[:-1]).any():  # Two IDs are equal, or, very rarely, their hashes.
        return None
    return np.frombuffer(starts, dtype), np.frombuffer(ends, dtype), has_braces


def _after_first_brace(buffer: Bytes, size: int) -> int:
    """Return where the first row may begin; 0 if the file does not begin with a brace."""
    head = buffer[: min(size, 4096)].tobytes()
    text = head.removeprefix(_BOM)
    text = text.lstrip(_WHITE)
    return len(head) - len(text) + 1 if text.startswith(b"{") else 0


def _scan_chunk(buffer: Bytes, begin: int, stop: int, *, is_first: bool) -> _Chunk | None:
    """Return the complete rows of a chunk; None if it is not a sequence of rows."""
    chunk = _without_escapes(buffer[begin:stop])
    at, is_quote, opens, closes, has_braces, closed_at = _structure_of(chunk)
    # The two marks before a row are the quotes of its ID, and before these the previous row ends.
    before = np.concatenate([[-1], closes[:-1]])[: len(closes)]
    if not ((opens - before == 3).all() and is_quote[opens - 1].all()):  # noqa: PLR2004
        return None
    if not (_is_brace(chunk[at[opens]]).all() and _is_brace(chunk[at[closes]]).all()):
        return None
    at = at + begin
    ids, colons, rows, ends = at[before + 1], at[before + 2], at[opens], at[closes]
    previous = np.concatenate([[begin - 1], ends[:-1]])[: len(ends)]
    has_separators = _only(buffer, colons, rows, b":") and (
        (_only(buffer, previous[:1], ids[:1], b"") and _only(buffer, previous[1:], ids[1:], b","))
        if is_first
        else _only(buffer, previous, ids, b",")
    )
    if not has_separators:
        return None
    closed_at = closed_at + begin if closed_at >= 0 else -1
    return _Chunk(ids, ends + 1, _hashes(buffer, ids + 1, colons), has_braces, closed_at)


def _structure_of(chunk: Bytes) -> _Structure:
    folded = chunk | _FOLD
    # at: (marks,) positions of quotes, brackets and braces; mark: (marks,) which of them
    at = np.flatnonzero((chunk == _QUOTE) | (folded == _OPEN) | (folded == _CLOSE))
    mark = folded[at]
    is_quote = chunk[at] == _QUOTE
    # From an opening quote up to the closing one, the number of quotes so far is odd.
    is_inside = np.bitwise_xor.accumulate(is_quote.view(np.uint8)).view(np.bool_)
    has_braces, in_string = False, is_inside & ~is_quote
    if in_string.any():
        has_braces = bool(_is_brace(chunk[at[in_string]]).any())
        kept = ~in_string
        at, mark, is_quote, is_inside = at[kept], mark[kept], is_quote[kept], is_inside[kept]
    # bracket: indices into at of those outside of strings; depth: the nesting depth after each
    bracket = np.flatnonzero(~(is_quote | is_inside))
    is_opening = mark[bracket] == _OPEN
    depth = 1 + np.cumsum(np.where(is_opening, 1, -1))
    end = np.flatnonzero(depth == 0)
    closed_at = -1
    if len(end):
        closed_at = int(at[bracket[end[0]]])
        bracket, is_opening, depth = bracket[: end[0]], is_opening[: end[0]], depth[: end[0]]
    closes = bracket[~is_opening & (depth == 1)]
    opens = bracket[is_opening & (depth == 2)][: len(closes)]  # noqa: PLR2004 - a row
    return _Structure(at, is_quote, opens, closes, has_braces, closed_at)


def _without_escapes(chunk: Bytes) -> Bytes:
    """Return the chunk with underscores for escaped quotes and backslashes, of the same length."""
    if not (chunk == _ESCAPE).any():
        return chunk
    # Pairs first: a backslash that remains then escapes the character after it.
    text = chunk.tobytes().replace(b"\\\\", b"__").replace(b'\\"', b"__")
    return np.frombuffer(text, np.uint8)


def _is_brace(marks: Bytes) -> npt.NDArray[np.bool_]:
    is_brace: npt.NDArray[np.bool_] = (marks == _OPEN) | (marks == _CLOSE)
    return is_brace


def _only(buffer: Bytes, left: Positions, right: Positions, separator: bytes) -> bool:
    """Return whether there are only white space and one `separator` between two positions."""
    if not len(left):
        return True
    gaps = right - left - 1
    shortest, longest = int(gaps.min()), int(gaps.max())
    if shortest < len(separator) or longest > _MAX_GAP:
        return False
    count = np.zeros(len(gaps), np.int8)
    for offset in range(longest):
        chosen = slice(None) if offset < shortest else gaps > offset
        values = buffer[left[chosen] + 1 + offset]
        is_separator = values == (separator[0] if separator else 0)
        if not (is_separator | np.isin(values, _SPACES)).all():
            return False
        count[chosen] += is_separator
    return bool((count == len(separator)).all())


def _hashes(buffer: Bytes, starts: Positions, ends: Positions) -> Hashes:
    """Hash byte strings to 64 bits each."""
    # words[p] is the 8 bytes at p as one number, for any p
    words = np.ndarray((len(buffer) - WORD_BYTES + 1,), "<u8", buffer.data, 0, (1,))
    lengths = ends - starts
    hashes: Hashes = lengths.astype(np.uint64)
    remaining = np.arange(len(starts))
    done = 0
    while len(remaining):
        num_bytes = np.minimum(lengths[remaining] - done, WORD_BYTES)
        word = words[starts[remaining] + done] & _LOW_BYTES[num_bytes]
        # A word is mixed before it is combined: IDs that count up differ in few bits.
        hashes[remaining] = _mixed(hashes[remaining] * _ODD ^ _mixed(word))
        done += WORD_BYTES
        remaining = remaining[lengths[remaining] > done]
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
_LOW_BYTES = np.array([(1 << 8 * n) - 1 for n in range(WORD_BYTES + 1)], np.uint64)
