"""All file operations of a save, a load and a deletion, each behind a failpoint.

A test sets `failpoint`, which is called before each operation.  It can raise an error of the disk,
kill the process, or record the operations to simulate a power loss.  For "write" it can return how
many bytes the disk accepts.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

# Called as failpoint(operation, path, detail); the detail is the target of a rename or the bytes of
# a write.
failpoint: Callable[[str, str, Any], int | None] | None = None

# Windows has none of the first four, and translates line ends without the last.
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
_DIRECTORY = getattr(os, "O_DIRECTORY", 0)
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_BINARY = getattr(os, "O_BINARY", 0)
_offset_lock = threading.Lock()
# Linux has a path for each open file and directory.
_HANDLES = Path("/proc/self/fd")
# A process opens at most this part of the files that it may open.
_HELD_PART = 4
# Errors of file systems that cannot fsync a directory.
_NO_DIRECTORY_FSYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF})

T = TypeVar("T")


class Identity(NamedTuple):
    """The device, inode, size and times of a file or directory."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


def mkdir(path: Path) -> None:
    """Make a new directory in an existing one."""
    _retry_interrupted("mkdir", path, lambda: os.mkdir(path))


def make_directories(path: Path) -> None:
    """Make a directory with its missing parents, and flush each new entry to the disk."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        fsync_directory(new.parent)


def create(path: Path) -> int:
    """Make a new file and open it for writing."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CLOEXEC | _NO_FOLLOW | _BINARY
    return _retry_interrupted("create", path, lambda: os.open(path, flags, 0o666))


def write(descriptor: int, path: Path, data: memoryview) -> None:
    """Write all bytes, in as many calls as the disk needs."""
    while len(data):
        limit: int | None = None
        try:
            if failpoint is not None:
                limit = failpoint("write", str(path), data)
            accepted = os.write(descriptor, data if limit is None else data[:limit])
        except InterruptedError:
            continue
        if accepted == 0:
            raise OSError(errno.ENOSPC, "the disk took no byte of a write", str(path))
        data = data[accepted:]


def fsync(descriptor: int, path: Path) -> None:
    """Flush the content of a file to the disk.  After a failure it must not be called again."""
    _call_failpoint("fsync", path)
    os.fsync(descriptor)


def start_writeback(descriptor: int, start: int, length: int) -> None:
    """Start flushing a range of a file without waiting; a hint only."""
    sync_file_range = _sync_file_range()
    if sync_file_range is not None:
        sync_file_range(descriptor, start, length, 2)  # SYNC_FILE_RANGE_WRITE


def fsync_file(path: Path) -> None:
    """Flush the content of a file that was not opened here."""
    descriptor = os.open(path, os.O_RDWR | _CLOEXEC | _NO_FOLLOW | _BINARY)
    try:
        fsync(descriptor, path)
    finally:
        os.close(descriptor)


def fsync_directory(path: Path) -> None:
    """Flush the entries of a directory to the disk; Windows cannot open one, and needs no flush."""
    _call_failpoint("fsync_directory", path)
    if not _DIRECTORY:
        return
    descriptor = os.open(path, os.O_RDONLY | _CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_FSYNC:
            raise
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Rename a file or directory within its parent; an existing target is not replaced."""
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "the target of a rename exists", str(target))
    _retry_interrupted("rename", source, lambda: os.rename(source, target), str(target))


def unlink(path: Path) -> None:
    """Delete a file or a link, if it exists."""
    with contextlib.suppress(FileNotFoundError):
        _retry_interrupted("unlink", path, lambda: os.unlink(path))


def rmdir(path: Path) -> None:
    """Delete an empty directory, if it exists."""
    with contextlib.suppress(FileNotFoundError):
        _retry_interrupted("rmdir", path, lambda: os.rmdir(path))


def remove_tree(path: Path) -> None:
    """Delete a directory with its content, without following links."""
    for name in names(path):
        child = path / name
        if is_directory(child):
            remove_tree(child)
        else:
            unlink(child)
    rmdir(path)


def names(path: Path) -> list[str]:
    """Return the sorted names in a directory; none if it does not exist."""
    _call_failpoint("list", path)
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []


def inodes(path: Path) -> dict[str, int]:
    """Return the names in a directory with their inode numbers; none if it does not exist."""
    _call_failpoint("list", path)
    try:
        with os.scandir(path) as entries:
            return {entry.name: entry.inode() for entry in entries}
    except FileNotFoundError:
        return {}


def identity(path: str) -> Identity | None:
    """Return what changes if a file or directory is written or replaced; None if there is none."""
    try:
        status = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return Identity(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )


def is_directory(path: Path) -> bool:
    """Return whether a path is a directory, and not a link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[int, int]]:
    """Open a regular file, not a link, for reading; yield its descriptor and its size in bytes."""
    _call_failpoint("open", path)
    no_follow = 0 if _is_handle(path) else _NO_FOLLOW
    descriptor = os.open(path, os.O_RDONLY | _CLOEXEC | no_follow | _NONBLOCK | _BINARY)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def opened_for_update(path: Path) -> Iterator[int]:
    """Open a file for reading and writing, which is made if it does not exist."""
    flags = os.O_RDWR | os.O_CREAT | _CLOEXEC | _NO_FOLLOW | _BINARY
    descriptor = _retry_interrupted("create", path, lambda: os.open(path, flags, 0o666))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def truncate(descriptor: int, path: Path, length: int) -> None:
    """Cut an open file to a length in bytes, and continue to write at its end."""
    _call_failpoint("truncate", path)
    os.ftruncate(descriptor, length)
    os.lseek(descriptor, 0, os.SEEK_END)


@contextlib.contextmanager
def opened_directory(path: Path) -> Iterator[Path]:
    """Open a directory; yield a path that refers to it even after it is renamed.

    Other processes of the same machine and user can use it, too.  Where the system has no such
    paths, this is the path itself.
    """
    _call_failpoint("open", path)
    if not _DIRECTORY:
        yield path
        return
    descriptor = os.open(path, os.O_RDONLY | _CLOEXEC | _DIRECTORY)
    try:
        yield _handle(descriptor) or path
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held_files(directory: Path, files: Iterable[str]) -> Iterator[dict[str, Path]]:
    """Open files below a directory; yield paths by which they can be read also once deleted.

    Files that cannot be opened are left out, and files beyond a quarter of what the process may
    open, and all of them where the system has no such paths.
    """
    held: dict[str, Path] = {}
    with contextlib.ExitStack() as stack:
        left = _descriptor_limit() // _HELD_PART if _HANDLES.exists() else 0
        for name in itertools.islice(files, left):
            with contextlib.suppress(OSError):
                descriptor, _ = stack.enter_context(opened(directory / name))
                path = _handle(descriptor)
                if path is not None:
                    held[name] = path
        yield held


@functools.cache
def process_space() -> str | None:
    """Return an identity of this machine's process numbers; None if it has none.

    Two processes of the same space can use each other's paths of open files.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {os.getuid()}"
    except (OSError, AttributeError):
        return None


def read(path: Path, limit_bytes: int) -> bytes:
    """Return the content of a small file; a file over the limit is not read."""
    with opened(path) as (descriptor, size):
        if size > limit_bytes:
            raise OSError(errno.EFBIG, f"{size} bytes, over the limit of {limit_bytes}", str(path))
        parts = []
        while part := os.read(descriptor, size + 1):
            parts.append(part)
    return b"".join(parts)


def read_at(descriptor: int, length: int, start: int) -> bytes:
    """Return bytes of an open file from an offset; fewer at its end."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, length, start)
    buffer = memoryview(bytearray(length))
    return bytes(buffer[: read_into(descriptor, [buffer], start)])


def read_into(descriptor: int, buffers: Sequence[memoryview], start: int) -> int:
    """Read from an offset of an open file into buffers; return the number of bytes read."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, buffers, start)
    read_bytes = 0
    with _offset_lock:  # on Windows, threads share the offset of a descriptor
        os.lseek(descriptor, start, os.SEEK_SET)
        for buffer in buffers:
            part = os.read(descriptor, len(buffer))
            buffer[: len(part)] = part
            read_bytes += len(part)
            if len(part) < len(buffer):
                break
    return read_bytes


def walk(root: Path, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Yield (name below root, whether it is a directory) for everything in a directory."""
    for name in names(root / prefix):
        inner = f"{prefix}/{name}" if prefix else name
        directory = is_directory(root / inner)
        yield inner, directory
        if directory:
            yield from walk(root, inner)


def report_external_write(path: Path) -> None:
    """Report to the failpoint a file that a hook wrote without this module."""
    _call_failpoint("external_write", path)


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    # A Linux call that Python does not offer; os.fdatasync would also wait for the journal.
    import ctypes

    try:
        call = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError, TypeError):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return cast("Callable[[int, int, int, int], int]", call)


def _handle(descriptor: int) -> Path | None:
    """Return a path of an open file or directory; None if the system has none."""
    try:
        process = os.readlink(_HANDLES.parent)
    except OSError:
        return None
    path = f"{_HANDLES.parent.parent}/{process}/{_HANDLES.name}/{descriptor}"
    return Path(path) if os.path.lexists(path) else None


def _is_handle(path: Path) -> bool:
    return path.parts[1:2] == _HANDLES.parts[1:2] and path.parent.name == _HANDLES.name


def _descriptor_limit() -> int:
    try:
        import resource
    except ImportError:  # pragma: no cover - Windows
        return 0
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _call_failpoint(operation: str, path: Path, detail: Any = None) -> None:
    if failpoint is not None:
        failpoint(operation, str(path), detail)


def _retry_interrupted(
    operation: str, path: Path, action: Callable[[], T], detail: Any = None
) -> T:
    # Python retries EINTR in most calls, but some network file systems return it elsewhere.
    while True:
        try:
            _call_failpoint(operation, path, detail)
            return action()
        except InterruptedError:  # noqa: PERF203 - the loop retries
            continue
