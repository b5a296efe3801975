"""Wait for gloo's worker threads before the interpreter is finalized.

A worker thread of gloo may hold the last reference to a finished operation, whose tensors have
Python objects: to release it, the thread needs the GIL.  Python ends a thread that asks for the
GIL during finalization by ``pthread_exit``, which unwinds through a C++ destructor that must not
throw: the process aborts (SIGABRT, "terminate called without an active exception"), although the
script succeeded.  An exit handler that destroys the groups does not help: operations outlive them.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from typing import TYPE_CHECKING

from brain_dist import compat

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

_THREADS = "/proc/self/task"

_LOOK_EVERY_S = 0.003
# A thread that waits for the GIL looks idle, too; it gets the GIL during the sleep between looks.
_IDLE_LOOKS = 3
_LIMIT_S = 1.0
# Where the states of threads cannot be read.
_BLIND_WAIT_S = 0.05

_STATE_LINES = ("State:", "voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:")
_ASLEEP = "State:\tS"

_registered = False


def wait_for_workers_at_exit() -> None:
    """Register the exit handler, once a process; call it where a group is made or found."""
    global _registered  # noqa: PLW0603 - one exit handler a process
    if not _registered:
        _registered = True
        atexit.register(_wait_for_workers)


def _wait_for_workers() -> None:
    """Release the GIL until gloo's workers are idle, those of destroyed groups too."""
    if not os.path.isdir(_THREADS):
        time.sleep(_BLIND_WAIT_S)
        return
    deadline = time.monotonic() + _LIMIT_S
    names, main_thread = compat.gloo_worker_names(), str(threading.get_native_id())
    idle_looks, former = 0, _states(names, main_thread)
    while former and idle_looks < _IDLE_LOOKS and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_S)
        states = _states(names, main_thread)
        asleep = all(_ASLEEP in state for state in states.values())
        idle_looks = idle_looks + 1 if asleep and states == former else 0
        former = states


def _states(names: AbstractSet[str], main_thread: str) -> dict[str, str]:
    """Return state and number of context switches of the threads with these names, by thread."""
    found = {}
    for thread in set(os.listdir(_THREADS)) - {main_thread}:
        try:
            with open(f"{_THREADS}/{thread}/status", encoding="utf-8") as file:
                lines = file.read().splitlines()
        except OSError:  # the thread has ended meanwhile
            continue
        if lines[0].removeprefix("Name:\t") in names:
            found[thread] = "\n".join(line for line in lines if line.startswith(_STATE_LINES))
    return found
