"""Checksums of files in chunks, computed while writing and compared before loading.

A checksum detects accidents, not attacks.  CRC-32 is computed by zlib, or with the extra ``fast``
by ISA-L, which gives the same values three times as fast.
"""

from __future__ import annotations

import functools
import hashlib
import os
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from brain_ckpt.storage import filesystem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

CHUNK_BYTES = 16 * 2**20

Algorithm = Literal["crc32", "sha256"]

T = TypeVar("T")

# Fits into the cache of a core, and is large enough that threads rarely wait for the GIL.
_READ_BYTES = 2**20
_THREADS = min(4, os.cpu_count() or 1)


class FileDigest(NamedTuple):
    """The size of a file in bytes and the hexadecimal checksum of each chunk."""

    size: int
    chunks: tuple[str, ...]


class Digester:
    """Computes the checksums of a stream of bytes, chunk by chunk."""

    def __init__(self, algorithm: Algorithm = "crc32") -> None:
        self.algorithm = algorithm
        self._size = 0
        self._chunks: list[str] = []
        self._running = new_checksum(algorithm)

    def update(self, data: memoryview) -> None:
        """Add the next bytes."""
        while len(data):
            room = CHUNK_BYTES - self._size % CHUNK_BYTES
            part = data[:room]
            self._running.update(part)
            self._size += len(part)
            if self._size % CHUNK_BYTES == 0:
                self._next_chunk()
            data = data[room:]

    def finish(self) -> FileDigest:
        """Return the digest of all bytes; no more can be added."""
        if self._size % CHUNK_BYTES:
            self._next_chunk()
        return FileDigest(self._size, tuple(self._chunks))

    def _next_chunk(self) -> None:
        self._chunks.append(self._running.hexdigest())
        self._running = new_checksum(self.algorithm)


def check_checksum(name: object) -> None:
    """Raise ValueError if there is no checksum of a name."""
    if name not in ("crc32", "sha256"):
        raise ValueError(f'checksum must be "crc32" or "sha256", got {name!r}; use "crc32"')


def digest_file(path: Path, algorithm: Algorithm) -> FileDigest:
    """Compute the digest of a file."""
    digester = Digester(algorithm)
    with filesystem.opened(path) as (descriptor, _):
        while part := os.read(descriptor, _READ_BYTES):
            digester.update(memoryview(part))
    return digester.finish()


def first_damage(
    locate: Callable[[str], Path], files: Iterable[tuple[str, FileDigest]], algorithm: Algorithm
) -> str | None:
    """Compare files with their digests, in several threads.

    Parameters
    ----------
    locate : callable
        Returns the path of a file, by its name.
    files : iterable of (str, FileDigest)
        Names, with the expected digests.
    algorithm : str
        The algorithm of the digests.

    Returns
    -------
    str or None
        The damage of the first damaged file, with its name; None if all are intact.
    """
    checks: list[Callable[[], str | None]] = []
    for name, digest in files:
        path = locate(name)
        problem = _size_problem(path, name, digest)
        if problem is not None:
            return problem
        checks.extend(_chunk_checks(path, name, digest, algorithm))
    if sum(digest.size for _, digest in files) <= CHUNK_BYTES // 4:
        return next((found for check in checks if (found := check())), None)
    return next((found for found in in_parallel(checks) if found), None)


def in_parallel(actions: Sequence[Callable[[], T]]) -> Iterator[T]:
    """Call functions in several threads; yield their results in order."""
    if _THREADS == 1 or len(actions) == 1:
        yield from (action() for action in actions)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_THREADS, "brain-ckpt-verify") as pool:
        yield from pool.map(lambda action: action(), actions)


def new_checksum(algorithm: Algorithm) -> _Crc32 | _Sha256:
    """Return a running checksum."""
    return _Crc32() if algorithm == "crc32" else _Sha256()


@functools.cache
def fastest_crc32() -> Callable[[memoryview, int], int]:
    """Return a function that continues a CRC-32 over more bytes."""
    try:
        from isal.isal_zlib import crc32
    except ImportError:
        from zlib import crc32
    function: Callable[[memoryview, int], int] = crc32
    return function


class _Crc32:
    def __init__(self) -> None:
        self._value = 0
        self._crc32 = fastest_crc32()

    def update(self, data: memoryview) -> None:
        self._value = self._crc32(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


class _Sha256:
    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def update(self, data: memoryview) -> None:
        self._hash.update(data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _size_problem(path: Path, name: str, digest: FileDigest) -> str | None:
    try:
        with filesystem.opened(path) as (_, size):
            if size != digest.size:
                return f"{name} must have {digest.size} bytes, got {size}"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror or error}"
    return None


def _chunk_checks(
    path: Path, name: str, digest: FileDigest, algorithm: Algorithm
) -> list[Callable[[], str | None]]:
    def check(number: int, expected: str) -> str | None:
        start = number * CHUNK_BYTES
        length = min(CHUNK_BYTES, digest.size - start)
        try:
            found = _digest_range(path, start, length, algorithm)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
        if found != expected:
            return (
                f"{name} is damaged between byte {start} and {start + length}: "
                f"its {algorithm} must be {expected}, got {found}"
            )
        return None

    return [functools.partial(check, *chunk) for chunk in enumerate(digest.chunks)]


def _digest_range(path: Path, start: int, length: int, algorithm: Algorithm) -> str:
    running = new_checksum(algorithm)
    buffer = bytearray(min(_READ_BYTES, length))
    view = memoryview(buffer)
    with filesystem.opened(path) as (descriptor, _):
        end = start + length
        while start < end:
            length_read = filesystem.read_into(descriptor, [view[: end - start]], start)
            if length_read == 0:
                return "the end of the file"
            running.update(view[:length_read])
            start += length_read
    return running.hexdigest()
