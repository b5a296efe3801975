"""Keep gloo's worker threads from aborting or delaying the end of the process.

A worker thread of gloo may hold the last reference to a finished operation, whose tensors have
Python objects: to release it, the thread needs the GIL.  Python ends a thread that asks for the
GIL during finalization by ``pthread_exit``, which unwinds through a C++ destructor that must not
throw: the process aborts (SIGABRT, "terminate called without an active exception"), although the
script succeeded.  An exit handler that destroys the groups does not help: operations outlive them.

And if an operation is still running, because the other ranks never join it, the destructor of its
group waits for it, up to the group's timeout.  The destructor of early versions of torch waits
with the GIL, for ever if a worker asks for it: there a group is never destroyed.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import platform
import signal
import threading
import time
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from brain_dist import compat

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch.distributed import ProcessGroup

_THREADS = "/proc/self/task"

_LOOK_EVERY_S = 0.003
# A thread that waits for the GIL looks idle, too; it gets the GIL during the sleep between looks.
_IDLE_LOOKS = 3
_LIMIT_S = 1.0
# Where the states of threads cannot be read.
_BLIND_WAIT_S = 0.05

_STATE_LINES = ("State:", "voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:")
_ASLEEP = "State:\tS"
# The number of the system call `futex`, in which a sleeping worker waits.
_FUTEX = {"x86_64": "202", "aarch64": "98"}

_registered = False
# Groups that torch's own registry may no longer contain, while a wrapped module keeps them alive.
_groups: WeakSet[Any] = WeakSet()
# Threads whose call into torch this process does not wait for any more.
_abandoned_threads: list[threading.Thread] = []
# Groups whose destructor would wait for an operation that this process has given up.
_abandoned: list[tuple[Any, Any]] = []


def register_exit_handler(group: ProcessGroup | None = None) -> None:
    """Register the exit handler, once a process; call it where a group is made or found.

    Parameters
    ----------
    group : ProcessGroup, optional
        A group that the handler has to consider.
    """
    global _registered  # noqa: PLW0603 - one exit handler a process
    if group is not None and group not in _groups:
        _groups.add(group)
        if compat.group_destructor_keeps_the_gil():
            _pin([group])
    if not _registered:
        _registered = True
        atexit.register(_finish)


def abandon(group: Any, work: Any) -> None:
    """Keep a group alive for ever, because no code waits for its operation `work` any more.

    Otherwise the destructor of the group would wait for it.
    """
    _abandoned.append((group, work))


def abandon_thread(thread: threading.Thread) -> None:
    """Note a thread that is inside a call into torch, which may not return."""
    _abandoned_threads.append(thread)


def _finish() -> None:
    """Release the GIL until gloo's workers are idle; abandon operations that do not end."""
    if not os.path.isdir(_THREADS):
        time.sleep(_BLIND_WAIT_S)
        return
    workers = _wait_for_workers()
    stuck = [thread for thread in workers if _runs_operation(thread)]
    stuck += [str(thread.native_id) for thread in _abandoned_threads if thread.is_alive()]
    if stuck:
        _pin([*_groups, *compat.all_groups()])
        _freeze(stuck)


def _wait_for_workers() -> Mapping[str, str]:
    """Wait until gloo's workers sleep, those of destroyed groups too; return their states."""
    deadline = time.monotonic() + _LIMIT_S
    names = compat.gloo_worker_names()
    idle_looks, states = 0, _states(names)
    while states and idle_looks < _IDLE_LOOKS and time.monotonic() < deadline:
        former = states
        time.sleep(_LOOK_EVERY_S)
        states = _states(names)
        asleep = all(_ASLEEP in state for state in states.values())
        idle_looks = idle_looks + 1 if asleep and states == former else 0
    return states


def _states(names: Iterable[str]) -> dict[str, str]:
    """Return state and number of context switches of the threads with these names, by thread.

    Those that Python has started are left out: some have the name of the process, too.
    """
    states = {}
    started_by_python = {str(thread.native_id) for thread in threading.enumerate()}
    for thread in set(os.listdir(_THREADS)) - started_by_python:
        try:
            with open(f"{_THREADS}/{thread}/status", encoding="utf-8") as file:
                lines = file.read().splitlines()
        except OSError:  # the thread has ended meanwhile
            continue
        if lines[0].removeprefix("Name:\t") in names:
            states[thread] = "\n".join(line for line in lines if line.startswith(_STATE_LINES))
    return states


def _runs_operation(thread: str) -> bool:
    """Return whether a worker is inside an operation.

    Such a worker sleeps until the operation's timeout, an idle one without a timeout.
    """
    try:
        with open(f"{_THREADS}/{thread}/syscall", encoding="utf-8") as file:
            fields = file.read().split()
    except OSError:
        return False
    # number of the call, address, operation, value, timeout
    return fields[0] == _FUTEX.get(platform.machine()) and int(fields[4], 16) != 0


def _pin(groups: Iterable[Any]) -> None:
    """Keep groups from being destroyed: their destructors wait for all operations."""
    for group in groups:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))


def _freeze(threads: Iterable[str]) -> None:
    """Stop sleeping threads for ever, so that they cannot ask for the GIL during finalization."""
    libc = ctypes.CDLL(None)
    number = signal.SIGRTMAX - 1
    if not hasattr(libc, "tgkill") or signal.getsignal(number) is not signal.SIG_DFL:
        return
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal.restype = ctypes.c_void_p
    libc.signal(number, ctypes.cast(libc.pause, ctypes.c_void_p))
    for thread in threads:
        libc.tgkill(os.getpid(), int(thread), number)
