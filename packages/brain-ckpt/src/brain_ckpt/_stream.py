"""Writing one file: exclusively, with its checksum taken on the way, confirmed by the disk."""

from __future__ import annotations

import contextlib
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from brain_ckpt import _fs
from brain_ckpt._checksum import Algorithm, Digester, FileDigest, digest_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# A write from here on has its checksum taken beside it, by another core.
_BESIDE_BYTES = 2**20
# After so many bytes the disk is set to work, while the next ones are produced.
_EARLY_SYNC_BYTES = 32 * 2**20
# A disk that is full or read-only stays so: no use in writing the file again.
_FINAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


class FsyncFailedError(OSError):
    """The disk did not confirm a file; what it holds of it is unknown."""


class Stream:
    """A file being written; has what torch.save asks of a file.

    Parameters
    ----------
    path : Path
        Where; nothing is there yet.
    algorithm : str
        The checksum.
    beside : bool
        Whether another core takes the checksum while this one writes.
    """

    def __init__(self, path: Path, algorithm: Algorithm = "crc32", *, beside: bool = True) -> None:
        self._path = path
        self._digester = Digester(algorithm)
        self._pool: ThreadPoolExecutor | None = None
        self._beside = beside
        self._written = 0
        self._unsynced_bytes = 0
        self._held = bytearray()
        self._descriptor = _fs.create(path)

    def write(self, data: Any) -> int:
        """Write bytes, all of them."""
        view = memoryview(data).cast("B")
        size = len(view)
        if size < _BESIDE_BYTES:
            # torch.save writes each header and each padding by itself.
            self._held += view
            if len(self._held) >= _BESIDE_BYTES:
                self._write_held()
        else:
            self._write_held()
            self._write_large(view)
        self._written += size
        self._unsynced_bytes += size
        if self._unsynced_bytes >= _EARLY_SYNC_BYTES:
            self._start_writeback()
        return size

    def flush(self) -> None:
        """Do nothing: what is held back is written at the end."""

    def finish(self) -> FileDigest:
        """Have the disk confirm the file, close it and return its checksums."""
        try:
            self._write_held()
            self._end_workers()
            try:
                _fs.fsync(self._descriptor, self._path)
            except OSError as error:
                raise FsyncFailedError(error.errno, error.strerror, str(self._path)) from error
        finally:
            self._close()
        return self._digester.finish()

    def abort(self) -> None:
        """Close and delete the file."""
        self._end_workers()
        self._close()
        with contextlib.suppress(OSError):
            _fs.unlink(self._path)

    def _write_large(self, view: memoryview) -> None:
        if not self._beside:
            _fs.write(self._descriptor, self._path, view)
            self._digester.update(view)
            return
        # The caller's memory is only ours until we return, so that both are waited for.
        digesting = self._workers().submit(self._digester.update, view)
        try:
            _fs.write(self._descriptor, self._path, view)
        finally:
            digesting.result()

    def _write_held(self) -> None:
        held, self._held = self._held, bytearray()
        if held:
            _fs.write(self._descriptor, self._path, memoryview(held))
            self._digester.update(memoryview(held))

    def _close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def _workers(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "brain-ckpt-write")
        return self._pool

    def _end_workers(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None

    def _start_writeback(self) -> None:
        # Only a head start: what counts is the fsync at the end, which reports every error.
        _fs.start_writeback(
            self._descriptor, self._written - self._unsynced_bytes, self._unsynced_bytes
        )
        self._unsynced_bytes = 0


def write_file(
    path: Path,
    produce: Callable[[Stream], Any],
    algorithm: Algorithm = "crc32",
    *,
    beside: bool = True,
) -> FileDigest:
    """Write a file through a stream; after a failed fsync once more, from the beginning.

    Parameters
    ----------
    path : Path
        Where; nothing is there yet.
    produce : callable
        Writes the content to the stream that it gets.
    algorithm : str
        The checksum.
    beside : bool
        Whether another core takes the checksum while this one writes.

    Raises
    ------
    OSError
        As the disk reported it, with the path; the file is gone.
    """
    try:
        return _write_once(path, produce, algorithm, beside=beside)
    except FsyncFailedError as error:
        if error.errno in _FINAL:
            raise
    return _write_once(path, produce, algorithm, beside=beside)


def adopt_file(path: Path, algorithm: Algorithm = "crc32") -> FileDigest:
    """Take in a file that a hook has written: confirm it on the disk and take its checksum."""
    _fs.adopt(path)
    _fs.fsync_file(path)
    return digest_file(path, algorithm)


class _Capturing:
    """Remembers the error of the disk: torch.save hides it behind one of its own."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        try:
            return self._stream.write(data)
        except BaseException as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        """Do nothing: bytes are never held back."""


def _write_once(
    path: Path, produce: Callable[[Any], Any], algorithm: Algorithm, *, beside: bool
) -> FileDigest:
    stream = Stream(path, algorithm, beside=beside)
    target = _Capturing(stream)
    try:
        try:
            produce(target)
        except Exception:
            if target.error is not None:
                raise target.error from None
            raise
        if target.error is not None:
            raise target.error  # noqa: TRY301 - the stream is to be closed as after any error
        return stream.finish()
    except BaseException:
        stream.abort()
        raise
