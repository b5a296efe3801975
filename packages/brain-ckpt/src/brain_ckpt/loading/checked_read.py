"""Reading a state so that each byte is checked on its way into the memory of its tensor.

What an optimizer keeps is read once, by all cores, instead of once for the checksum and once
more for the tensors.  Nothing of it is used before the whole file has been found intact.
"""

from __future__ import annotations

import bisect
import os
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

# Below it there is nothing to be gained.
LEAST_BYTES = 2**20
# Stays in a core's cache from the reading to the checksum.
_BATCH_BYTES = 2**20
_BATCH_BUFFERS = 512
_LOCAL_HEADER = struct.Struct("<26x2H")


class _Segment(NamedTuple):
    start: int
    buffer: memoryview


class _UnusualFileError(Exception):
    """Not laid out as torch.save does it; to be read in the usual way."""


def read_checked(path: Path, digest: FileDigest, algorithm: Algorithm) -> tuple[Any] | None:
    """Read a state that torch.save wrote, if its file is what was written.

    Parameters
    ----------
    path : Path
        The file.
    digest : FileDigest
        What it should be.
    algorithm : str
        How that was taken.

    Returns
    -------
    tuple of one object, or None
        The state, on the CPU.  None if the file is damaged, or not of the usual layout: the usual
        way then finds out which, and says so.
    """
    try:
        with filesystem.opened(path) as (descriptor, size):
            if size != digest.size:
                return None
            state, mapped, fresh = _without_content(path)
            segments = _cover(size, _places(descriptor, mapped), fresh)
            checks = _checks(descriptor, segments, digest, algorithm)
            intact = all(in_parallel(checks))
    except Exception:  # noqa: BLE001 - a damaged file can make its readers raise anything
        return None
    return (state,) if intact else None


def _without_content(
    path: Path,
) -> tuple[Any, list[torch.UntypedStorage], list[torch.UntypedStorage]]:
    # torch.load maps the file and reads none of it; each storage is exchanged for a fresh one.
    mapped: list[torch.UntypedStorage] = []
    fresh: list[torch.UntypedStorage] = []

    def exchange(storage: Any, location: str) -> Any:
        del location
        mapped.append(storage)
        fresh.append(torch.empty(storage.nbytes(), dtype=torch.uint8).untyped_storage())
        return fresh[-1]

    state = torch.load(path, map_location=exchange, weights_only=True, mmap=True)
    return state, mapped, fresh


def _places(descriptor: int, mapped: Sequence[torch.UntypedStorage]) -> list[int]:
    """Return where in the file each storage is: in the zip's order, as their addresses are."""
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


def _cover(
    size: int, places: Sequence[int], fresh: Sequence[torch.UntypedStorage]
) -> list[_Segment]:
    """Return buffers for the whole file: those of the storages, and some for what lies between."""
    found: list[_Segment] = []
    end = 0
    for place, storage in sorted(zip(places, fresh, strict=True), key=lambda pair: pair[0]):
        if not storage.nbytes():
            continue
        if place > end:
            found.append(_Segment(end, memoryview(bytearray(place - end))))
        as_bytes = torch.empty(0, dtype=torch.uint8).set_(storage)
        found.append(_Segment(place, memoryview(cast("Any", as_bytes.numpy()))))
        end = place + storage.nbytes()
    if end < size:
        found.append(_Segment(end, memoryview(bytearray(size - end))))
    return found


def _checks(
    descriptor: int, segments: Sequence[_Segment], digest: FileDigest, algorithm: Algorithm
) -> list[Callable[[], bool]]:
    def check(number: int, expected: str) -> bool:
        start = number * CHUNK_BYTES
        running = new_checksum(algorithm)
        for offset, buffers in _batches(segments, start, min(start + CHUNK_BYTES, digest.size)):
            if os.preadv(descriptor, buffers, offset) != sum(map(len, buffers)):
                return False
            for buffer in buffers:
                running.update(buffer)
        return running.hexdigest() == expected

    return [
        lambda number=number, expected=expected: check(number, expected)  # type: ignore[misc]  # a lambda's defaults have no types
        for number, expected in enumerate(digest.chunks)
    ]


def _batches(
    segments: Sequence[_Segment], start: int, end: int
) -> Iterator[tuple[int, list[memoryview]]]:
    """Yield the buffers of a stretch of the file, a few at a time, with their place."""
    number = bisect.bisect_right(segments, start, key=lambda one: one.start) - 1
    place, batch, held = start, list[memoryview](), 0
    while start < end:
        segment = segments[number]
        inner = start - segment.start
        room = min(end - start, _BATCH_BYTES - held)
        part = segment.buffer[inner : inner + room]
        batch.append(part)
        start += len(part)
        held += len(part)
        if inner + len(part) == len(segment.buffer):
            number += 1
        if held == _BATCH_BYTES or len(batch) == _BATCH_BUFFERS:
            yield place, batch
            place, batch, held = start, [], 0
    if batch:
        yield place, batch
