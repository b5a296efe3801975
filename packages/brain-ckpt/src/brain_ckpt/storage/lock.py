"""The lock of the run that writes to a directory.

A POSIX record lock: the kernel takes it back when its process ends, however it ends; it works
over NFS, and a forked loader worker does not inherit it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

try:
    import fcntl
except ImportError:  # pragma: no cover - not on this system
    fcntl = None  # type: ignore[assignment]  # Windows has none

LOCK_NAME = ".brain.lock"

_BUSY = frozenset({errno.EACCES, errno.EAGAIN})

# Held by this process: a record lock belongs to the process, and closing any descriptor of the
# file gives it up, so that there is one descriptor a directory.  (descriptor, owner's pid, uses)
_held: dict[str, tuple[int, int, int]] = {}


class DirectoryLock:
    """At most one process writes to a directory; any number of checkpointers in it may.

    Parameters
    ----------
    directory : Path
        The directory, which is there.
    run : str
        The identity of the run, for whoever finds the directory locked.
    """

    def __init__(self, directory: Path, run: str) -> None:
        self._key = os.path.realpath(directory)
        self._path = directory / LOCK_NAME
        self._run = run
        self._taken_by: int | None = None

    def acquire(self) -> str | None:
        """Take the lock; return None, or who has it."""
        if self._taken_by == os.getpid():
            return None
        descriptor, owner, uses = _held.get(self._key, (-1, 0, 0))
        if owner != os.getpid():
            if descriptor >= 0:
                # From before a fork: the lock stayed with the parent.
                with contextlib.suppress(OSError):
                    os.close(descriptor)
                _held.pop(self._key)
            descriptor, uses = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC), 0
            holder = self._try_lock(descriptor)
            if holder is not None:
                os.close(descriptor)
                return holder
        _held[self._key] = (descriptor, os.getpid(), uses + 1)
        self._taken_by = os.getpid()
        return None

    def release(self) -> None:
        """Give the lock back, if this process has it."""
        if self._taken_by != os.getpid():
            return
        self._taken_by = None
        descriptor, owner, uses = _held.get(self._key, (-1, 0, 0))
        if owner != os.getpid():
            return
        if uses > 1:
            _held[self._key] = (descriptor, owner, uses - 1)
        else:
            _held.pop(self._key)
            os.close(descriptor)

    def _try_lock(self, descriptor: int) -> str | None:
        if fcntl is None:  # pragma: no cover - not on this system
            return None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _BUSY:
                content = os.pread(descriptor, 1024, 0)
                return content.decode(errors="replace").strip() or "a process that just started"
            return None  # a file system without locks: nothing to be had, so nothing to refuse
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "run": self._run}
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        return None
