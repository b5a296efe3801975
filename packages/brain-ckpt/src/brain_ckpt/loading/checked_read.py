"""Read a state and compare its checksums in one pass, directly into the memory of its tensors.

A state that is kept, such as an optimizer's, is read once by several threads, instead of once for
the checksum and once for the tensors.  No tensor is used before the whole file is verified.
"""

from __future__ import annotations

import bisect
import struct
import sys
import zipfile
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from brain_ckpt.storage import filesystem
from brain_ckpt.storage.checksum import (
    CHUNK_BYTES,
    Algorithm,
    FileDigest,
    in_parallel,
    new_checksum,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

# Smaller files gain nothing.
MIN_BYTES = 2**20
# Fits into the cache of a core between the read and the checksum.
_BATCH_BYTES = 2**20
_BATCH_BUFFERS = 512
_LOCAL_HEADER = struct.Struct("<26x2H")


class _Segment(NamedTuple):
    start: int
    buffer: memoryview


class _UnusualFileError(Exception):
    """The file does not have the layout of torch.save."""


def read_checked(path: Path, digest: FileDigest, algorithm: Algorithm) -> tuple[Any] | None:
    """Read a state that torch.save wrote, if its file is intact.

    Parameters
    ----------
    path : Path
        The file.
    digest : FileDigest
        Its expected digest.
    algorithm : str
        The algorithm of the digest.

    Returns
    -------
    tuple of one object, or None
        The state, on the CPU.  None if the file is damaged or has another layout; the usual way
        of reading then reports which.
    """
    try:
        with filesystem.opened(path) as (descriptor, size):
            if size != digest.size:
                return None
            state, mapped, empty = _load_structure(path)
            segments = _segments(size, _offsets(descriptor, mapped), empty)
            checks = _checks(descriptor, segments, digest, algorithm)
            intact = all(in_parallel(checks))
    except Exception:  # noqa: BLE001 - a damaged file can raise anything
        return None
    return (state,) if intact else None


def _load_structure(
    path: Path,
) -> tuple[Any, list[torch.UntypedStorage], list[torch.UntypedStorage]]:
    # torch.load maps the file without reading it; each storage is replaced with an empty one.
    mapped: list[torch.UntypedStorage] = []
    empty: list[torch.UntypedStorage] = []

    def replace(storage: Any, location: str) -> Any:
        del location
        mapped.append(storage)
        empty.append(torch.empty(storage.nbytes(), dtype=torch.uint8).untyped_storage())
        return empty[-1]

    state = torch.load(path, map_location=replace, weights_only=True, mmap=True)
    return state, mapped, empty


def _offsets(descriptor: int, mapped: Sequence[torch.UntypedStorage]) -> list[int]:
    """Return the offset of each storage in the file, from the addresses of the mapped storages."""
    with zipfile.ZipFile(cast("Any", open(descriptor, "rb", closefd=False))) as archive:
        entries = archive.infolist()
    starts = []
    for entry in entries:
        if "/data/" in entry.filename and entry.file_size:
            starts.append((_start(descriptor, entry), entry.file_size))
        elif entry.filename.endswith("/byteorder"):
            order = filesystem.read_at(descriptor, entry.file_size, _start(descriptor, entry))
            if order.decode() != sys.byteorder:
                raise _UnusualFileError
    addressed = sorted((one.data_ptr(), one.nbytes()) for one in mapped if one.nbytes())
    base = addressed[0][0] - min(starts)[0] if addressed and starts else 0
    if [(address - base, size) for address, size in addressed] != sorted(starts):
        raise _UnusualFileError
    return [one.data_ptr() - base if one.nbytes() else 0 for one in mapped]


def _start(descriptor: int, entry: zipfile.ZipInfo) -> int:
    header = filesystem.read_at(descriptor, _LOCAL_HEADER.size, entry.header_offset)
    lengths: tuple[int, int] = _LOCAL_HEADER.unpack(header)
    return entry.header_offset + _LOCAL_HEADER.size + sum(lengths)


def _segments(
    size: int, offsets: Sequence[int], empty: Sequence[torch.UntypedStorage]
) -> list[_Segment]:
    """Return buffers that cover the file: the storages, and buffers for the bytes between them."""
    segments: list[_Segment] = []
    end = 0
    for offset, storage in sorted(zip(offsets, empty, strict=True), key=lambda pair: pair[0]):
        if not storage.nbytes():
            continue
        if offset > end:
            segments.append(_Segment(end, memoryview(bytearray(offset - end))))
        as_bytes = torch.empty(0, dtype=torch.uint8).set_(storage)
        segments.append(_Segment(offset, memoryview(cast("Any", as_bytes.numpy()))))
        end = offset + storage.nbytes()
    if end < size:
        segments.append(_Segment(end, memoryview(bytearray(size - end))))
    return segments


def _checks(
    descriptor: int, segments: Sequence[_Segment], digest: FileDigest, algorithm: Algorithm
) -> list[Callable[[], bool]]:
    def check(number: int, expected: str) -> bool:
        start = number * CHUNK_BYTES
        running = new_checksum(algorithm)
        for offset, buffers in _batches(segments, start, min(start + CHUNK_BYTES, digest.size)):
            if filesystem.read_into(descriptor, buffers, offset) != sum(map(len, buffers)):
                return False
            for buffer in buffers:
                running.update(buffer)
        return running.hexdigest() == expected

    return [
        lambda number=number, expected=expected: check(number, expected)  # type: ignore[misc]  # default arguments of a lambda
        for number, expected in enumerate(digest.chunks)
    ]


def _batches(
    segments: Sequence[_Segment], start: int, end: int
) -> Iterator[tuple[int, list[memoryview]]]:
    """Yield the buffers of a range of the file in batches, with the offset of each batch."""
    number = bisect.bisect_right(segments, start, key=lambda one: one.start) - 1
    offset, batch, batch_bytes = start, list[memoryview](), 0
    while start < end:
        segment = segments[number]
        inner = start - segment.start
        room = min(end - start, _BATCH_BYTES - batch_bytes)
        part = segment.buffer[inner : inner + room]
        batch.append(part)
        start += len(part)
        batch_bytes += len(part)
        if inner + len(part) == len(segment.buffer):
            number += 1
        if batch_bytes == _BATCH_BYTES or len(batch) == _BATCH_BUFFERS:
            yield offset, batch
            offset, batch, batch_bytes = start, [], 0
    if batch:
        yield offset, batch
