"""Writing one file: exclusively, with its checksum taken on the way, confirmed by the disk."""

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
# After so many bytes the disk is set to work, while the next ones are produced.
_EARLY_SYNC_BYTES = 8 * 2**20
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
    """

    def __init__(self, path: Path, algorithm: Algorithm = "crc32") -> None:
        self._path = path
        self._digester = Digester(algorithm)
        self._written = 0
        self._unsynced_bytes = 0
        self._held = bytearray()
        self._descriptor = filesystem.create(path)

    def write(self, data: Any) -> int:
        """Write bytes, all of them; few of them are held back until there are more."""
        view = memoryview(data).cast("B")
        if len(view) < _PIECE_BYTES:
            # torch.save writes each header and each padding by itself.
            self._held += view
            if len(self._held) >= _PIECE_BYTES:
                self._write_held()
        else:
            self._write_held()
            self._write_through(view)
        return len(view)

    def flush(self) -> None:
        """Do nothing: what is held back is written at the end."""

    def finish(self) -> FileDigest:
        """Have the disk confirm the file, close it and return its checksums."""
        try:
            self._write_held()
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
        # Piece by piece, so that the write finds in the cache what the checksum has just read,
        # and the disk works while the next piece is summed up.  Another thread for the checksum
        # was slower wherever the second core had other work.
        for start in range(0, len(view), _PIECE_BYTES):
            piece = view[start : start + _PIECE_BYTES]
            self._digester.update(piece)
            filesystem.write(self._descriptor, self._path, piece)
            self._unsynced_bytes += len(piece)
            self._written += len(piece)
            if self._unsynced_bytes >= _EARLY_SYNC_BYTES:
                self._start_writeback()

    def _write_held(self) -> None:
        held, self._held = self._held, bytearray()
        self._write_through(memoryview(held))

    def _close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def _start_writeback(self) -> None:
        # Only a head start: what counts is the fsync at the end, which reports every error.
        filesystem.start_writeback(
            self._descriptor, self._written - self._unsynced_bytes, self._unsynced_bytes
        )
        self._unsynced_bytes = 0


def write_file(
    path: Path,
    produce: Callable[[Stream], Any],
    algorithm: Algorithm = "crc32",
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

    Raises
    ------
    OSError
        As the disk reported it, with the path; the file is gone.
    """
    try:
        return _write_once(path, produce, algorithm)
    except FsyncFailedError as error:
        if error.errno in _FINAL:
            raise
    return _write_once(path, produce, algorithm)


def adopt_file(path: Path, algorithm: Algorithm = "crc32") -> FileDigest:
    """Take in a file that a hook has written: confirm it on the disk and take its checksum."""
    filesystem.adopt(path)
    filesystem.fsync_file(path)
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


def _write_once(path: Path, produce: Callable[[Any], Any], algorithm: Algorithm) -> FileDigest:
    stream = Stream(path, algorithm)
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
