"""Write a new file, computing its checksum on the way, and flush it to the disk."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Any

from brain_ckpt.storage import filesystem
from brain_ckpt.storage.checksum import Algorithm, Digester, FileDigest, digest_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_PIECE_BYTES = 2**20
# Start flushing after so many bytes, while the next ones are produced.
_WRITEBACK_BYTES = 8 * 2**20
# Writing the file again does not help against these errors.
_PERMANENT = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


class FsyncFailedError(OSError):
    """Flushing a file failed; what the disk holds of it is unknown."""


class Stream:
    """A file that is being written, with the methods that torch.save calls.

    Parameters
    ----------
    path : Path
        The file, which must not exist.
    algorithm : str
        The checksum.
    """

    def __init__(self, path: Path, algorithm: Algorithm = "crc32") -> None:
        self._path = path
        self._digester = Digester(algorithm)
        self._written = 0
        self._unsynced_bytes = 0
        self._buffer = bytearray()
        self._descriptor = filesystem.create(path)

    def write(self, data: Any) -> int:
        """Write bytes; small pieces are collected in a buffer."""
        view = memoryview(data).cast("B")
        if len(view) < _PIECE_BYTES:
            # torch.save writes each header and each padding separately.
            self._buffer += view
            if len(self._buffer) >= _PIECE_BYTES:
                self._write_buffer()
        else:
            self._write_buffer()
            self._write_through(view)
        return len(view)

    def flush(self) -> None:
        """Do nothing; `finish` writes the buffer."""

    def finish(self) -> FileDigest:
        """Flush the file to the disk, close it and return its digest."""
        try:
            self._write_buffer()
            try:
                filesystem.fsync(self._descriptor, self._path)
            except OSError as error:
                raise FsyncFailedError(error.errno, error.strerror, str(self._path)) from error
        finally:
            self._close()
        return self._digester.finish()

    def abort(self) -> None:
        """Close and delete the file."""
        self._close()
        with contextlib.suppress(OSError):
            filesystem.unlink(self._path)

    def _write_through(self, view: memoryview) -> None:
        # In pieces that fit into the cache: the write reads what the checksum has just read, and
        # the disk works during the next checksum.  A separate thread for the checksum was slower
        # when the second core was busy.
        for start in range(0, len(view), _PIECE_BYTES):
            piece = view[start : start + _PIECE_BYTES]
            self._digester.update(piece)
            filesystem.write(self._descriptor, self._path, piece)
            self._unsynced_bytes += len(piece)
            self._written += len(piece)
            if self._unsynced_bytes >= _WRITEBACK_BYTES:
                self._start_writeback()

    def _write_buffer(self) -> None:
        buffer, self._buffer = self._buffer, bytearray()
        self._write_through(memoryview(buffer))

    def _close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def _start_writeback(self) -> None:
        # Only a hint; the fsync in `finish` reports every error.
        filesystem.start_writeback(
            self._descriptor, self._written - self._unsynced_bytes, self._unsynced_bytes
        )
        self._unsynced_bytes = 0


def write_file(
    path: Path,
    produce: Callable[[Stream], Any],
    algorithm: Algorithm = "crc32",
) -> FileDigest:
    """Write a file through a stream; after a failed fsync, write it again once.

    Parameters
    ----------
    path : Path
        The file, which must not exist.
    produce : callable
        Called with the stream; writes the content to it.
    algorithm : str
        The checksum.

    Raises
    ------
    OSError
        As reported by the disk, with the path; the file is removed.
    """
    try:
        return _write_once(path, produce, algorithm)
    except FsyncFailedError as error:
        if error.errno in _PERMANENT:
            raise
    return _write_once(path, produce, algorithm)


def digest_external_file(path: Path, algorithm: Algorithm = "crc32") -> FileDigest:
    """Flush a file that a hook wrote, and return its digest."""
    filesystem.report_external_write(path)
    filesystem.fsync_file(path)
    return digest_file(path, algorithm)


class _ErrorCapturingStream:
    """Keeps the error of the disk, which torch.save replaces with one of its own."""

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
        """Do nothing; `Stream.finish` writes the buffer."""


def _write_once(path: Path, produce: Callable[[Any], Any], algorithm: Algorithm) -> FileDigest:
    stream = Stream(path, algorithm)
    target = _ErrorCapturingStream(stream)
    try:
        try:
            produce(target)
        except Exception:
            if target.error is not None:
                raise target.error from None
            raise
        if target.error is not None:
            raise target.error  # noqa: TRY301 - the stream is aborted below
        return stream.finish()
    except BaseException:
        stream.abort()
        raise
