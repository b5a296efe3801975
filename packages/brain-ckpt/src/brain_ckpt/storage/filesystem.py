"""Every file operation of a save, a load and a deletion, each behind a failpoint.

A test sets `failpoint`, which is called before each operation: it may raise (an error of the
disk), end the process (a kill), or write down what happens (to work out what a loss of power
would leave).  For "write" it may also return how many bytes the disk takes this time.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Called as failpoint(operation, path, detail); the detail is the target of a rename or link, or
# the bytes of a write.
failpoint: Callable[[str, str, Any], int | None] | None = None

# Linux can name a file by its directory's handle, and refuse to follow a link.
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
# What file systems answer that cannot fsync a directory.
_NO_DIRECTORY_FSYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF})

T = TypeVar("T")


def mkdir(path: Path) -> None:
    """Make a directory that is not there yet; its parent is there."""
    _interruptible("mkdir", path, lambda: os.mkdir(path))


def create(path: Path) -> int:
    """Make a file that is not there yet, and open it for writing."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CLOEXEC | _NO_FOLLOW
    return _interruptible("create", path, lambda: os.open(path, flags, 0o666))


def write(descriptor: int, path: Path, data: memoryview) -> None:
    """Write all of the bytes, however little the disk takes at a time."""
    while len(data):
        limit: int | None = None
        try:
            if failpoint is not None:
                limit = failpoint("write", str(path), data)
            taken = os.write(descriptor, data if limit is None else data[:limit])
        except InterruptedError:
            continue
        if taken == 0:
            raise OSError(errno.ENOSPC, "the disk took no byte of a write", str(path))
        data = data[taken:]


def fsync(descriptor: int, path: Path) -> None:
    """Have the disk confirm a file's content.  Never to be tried again after a failure."""
    _point("fsync", path)
    os.fsync(descriptor)


def start_writeback(descriptor: int, start: int, length: int) -> None:
    """Set the disk to work on what was written, without waiting; promises nothing."""
    found = _sync_file_range()
    if found is not None:
        found(descriptor, start, length, 2)  # SYNC_FILE_RANGE_WRITE


def fsync_file(path: Path) -> None:
    """Have the disk confirm a file that somebody else wrote."""
    descriptor = os.open(path, os.O_RDWR | _CLOEXEC | _NO_FOLLOW)
    try:
        fsync(descriptor, path)
    finally:
        os.close(descriptor)


def fsync_directory(path: Path) -> None:
    """Have the disk confirm the names in a directory."""
    _point("fsync_directory", path)
    descriptor = os.open(path, os.O_RDONLY | _CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_FSYNC:
            raise
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Give a directory another name in the same parent; never over something that is there."""
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "not renaming over what is there", str(target))
    _interruptible("rename", source, lambda: os.rename(source, target), str(target))


def unlink(path: Path) -> None:
    """Delete a file or a link; one that is gone already is fine."""
    with contextlib.suppress(FileNotFoundError):
        _interruptible("unlink", path, lambda: os.unlink(path))


def rmdir(path: Path) -> None:
    """Delete an empty directory; one that is gone already is fine."""
    with contextlib.suppress(FileNotFoundError):
        _interruptible("rmdir", path, lambda: os.rmdir(path))


def remove_tree(path: Path) -> None:
    """Delete a directory and all that is in it, following no link."""
    for name in names(path):
        child = path / name
        if is_directory(child):
            remove_tree(child)
        else:
            unlink(child)
    rmdir(path)


def names(path: Path) -> list[str]:
    """Return the names in a directory, sorted; none if it is not there."""
    _point("list", path)
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []


def is_directory(path: Path) -> bool:
    """Say whether this is a directory itself, and not a link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[int, int]]:
    """Open a regular file, not a link, for reading; gives its descriptor and its size in bytes."""
    _point("open", path)
    descriptor = os.open(path, os.O_RDONLY | _CLOEXEC | _NO_FOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


def read(path: Path, limit_bytes: int) -> bytes:
    """Return the content of a small file; one over the limit is refused unread."""
    with opened(path) as (descriptor, size):
        if size > limit_bytes:
            raise OSError(errno.EFBIG, f"{size} bytes, over the limit of {limit_bytes}", str(path))
        parts = []
        while part := os.read(descriptor, size + 1):
            parts.append(part)
    return b"".join(parts)


def read_at(descriptor: int, length: int, start: int) -> bytes:
    """Return some bytes of an open file; fewer at its end."""
    return os.pread(descriptor, length, start)


def walk(root: Path, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Yield the name below `root` of everything in it, with "is a directory"; parents first."""
    for name in names(root / prefix):
        inner = f"{prefix}/{name}" if prefix else name
        directory = is_directory(root / inner)
        yield inner, directory
        if directory:
            yield from walk(root, inner)


def adopt(path: Path) -> None:
    """Tell the failpoint of a file that a hook has written past this module."""
    _point("adopt", path)


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    # Linux has it, and Python does not; fdatasync would wait for the journal as well.
    import ctypes

    try:
        call = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError, TypeError):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return cast("Callable[[int, int, int, int], int]", call)


def _point(operation: str, path: Path, detail: Any = None) -> None:
    if failpoint is not None:
        failpoint(operation, str(path), detail)


def _interruptible(operation: str, path: Path, action: Callable[[], T], detail: Any = None) -> T:
    # Python retries EINTR by itself in most calls, but not what some network file systems pass on.
    while True:
        try:
            _point(operation, path, detail)
            return action()
        except InterruptedError:  # noqa: PERF203 - trying again is what the loop is for
            continue
