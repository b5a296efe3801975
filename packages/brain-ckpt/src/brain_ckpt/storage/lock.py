"""The lock of the run that writes to a directory.

A POSIX record lock: the kernel releases it when the process ends, it works over NFS, and forked
processes such as loader workers do not inherit it.  Its file also holds the last save, so that a
name is not used again if the checkpoint is deleted.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]  # not on Windows

LOCK_NAME = ".brain.lock"

_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
_OWNER = ("host", "pid", "run")
_LIMIT_BYTES = 4096
_BUSY = frozenset({errno.EACCES, errno.EAGAIN})

# The locks that this process holds, as (descriptor, pid of the owner, uses).  A record lock belongs
# to the process and is released when any descriptor of the file is closed, so there is one
# descriptor per directory.
_open_locks: dict[str, tuple[int, int, int]] = {}


class LastSave(NamedTuple):
    """The last save to a directory: the name, time in seconds and number of its checkpoint.

    The name is that of the last checkpoint that was named from the time; empty if there is none.
    """

    name: str = ""
    time_s: float = 0.0
    seq: int = 0


class DirectoryLock:
    """Lets one process write to a directory, through any number of checkpointers.

    Parameters
    ----------
    directory : Path
        The directory, which exists.
    run_id : str
        The identity of the run, for the error of a second run.
    """

    def __init__(self, directory: Path, run_id: str) -> None:
        self._key = os.path.realpath(directory)
        self._path = directory / LOCK_NAME
        self._run_id = run_id
        self._owner_pid: int | None = None

    def acquire(self) -> str | None:
        """Acquire the lock and return None, or return who holds it."""
        if self._owner_pid == os.getpid():
            return None
        descriptor, owner, uses = _open_locks.get(self._key, (-1, 0, 0))
        if owner != os.getpid():
            if descriptor >= 0:
                # Opened before a fork; the parent holds the lock.
                with contextlib.suppress(OSError):
                    os.close(descriptor)
                _open_locks.pop(self._key)
            descriptor, uses = os.open(self._path, _FLAGS), 0
            holder = self._try_lock(descriptor)
            if holder is not None:
                os.close(descriptor)
                return holder
        _open_locks[self._key] = (descriptor, os.getpid(), uses + 1)
        self._owner_pid = os.getpid()
        return None

    def last_save(self) -> LastSave:
        """Return the last save, also that of an earlier run; the lock is held."""
        try:
            name, time_s, seq = _read(_open_locks[self._key][0])["last_save"]
            return LastSave(str(name), float(time_s), int(seq))
        except (KeyError, TypeError, ValueError):
            return LastSave()

    def note_save(self, save: LastSave) -> None:
        """Note a save before its name is used; the lock is held."""
        descriptor = _open_locks[self._key][0]
        _write(descriptor, {**_read(descriptor), "last_save": list(save)})

    def release(self) -> None:
        """Release the lock, if this process holds it."""
        if self._owner_pid != os.getpid():
            return
        self._owner_pid = None
        descriptor, owner, uses = _open_locks.get(self._key, (-1, 0, 0))
        if owner != os.getpid():
            return
        if uses > 1:
            _open_locks[self._key] = (descriptor, owner, uses - 1)
        else:
            _open_locks.pop(self._key)
            os.close(descriptor)

    def _try_lock(self, descriptor: int) -> str | None:
        if fcntl is None:  # pragma: no cover - Windows
            return None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _BUSY:
                holder = {key: value for key, value in _read(descriptor).items() if key in _OWNER}
                return json.dumps(holder) if holder else "a process that just started"
            return None  # a file system without locks
        owner = (socket.gethostname(), os.getpid(), self._run_id)
        _write(descriptor, {**_read(descriptor), **dict(zip(_OWNER, owner, strict=True))})
        return None


def _read(descriptor: int) -> dict[str, Any]:
    """Return the content of the file; a process can be killed before it has truncated it."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    text = os.read(descriptor, _LIMIT_BYTES).decode(errors="replace")
    try:
        content, _ = json.JSONDecoder().raw_decode(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _write(descriptor: int, content: dict[str, Any]) -> None:
    data = json.dumps(content).encode()
    with contextlib.suppress(OSError):  # a full disk
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, data)
        os.ftruncate(descriptor, len(data))
