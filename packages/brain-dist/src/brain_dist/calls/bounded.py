"""Calls into torch that may not return in time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

from brain_dist.process_exit import abandon_thread

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def call_within(timeout_s: float, function: Callable[[], T]) -> T:
    """Return what a function returns, or raise what it raises.

    It runs in a thread of its own, since a call into torch cannot be interrupted: waiting for a
    store whose process is stopped, or for a connection to a rank that was killed.

    Raises
    ------
    TimeoutError
        If the function has not returned after `timeout_s` seconds.  Its thread is abandoned.
    """
    returned: list[T] = []
    raised: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            returned.append(function())
        except BaseException as error:  # noqa: BLE001 - raised again in the calling thread
            raised.append(error)
        done.set()

    thread = threading.Thread(target=run, name="brain_dist-bounded", daemon=True)
    thread.start()
    try:
        in_time = done.wait(timeout_s)
    except BaseException:  # of a signal handler
        abandon_thread(thread)
        raise
    if not in_time:
        abandon_thread(thread)
        raise TimeoutError(f"a call has not returned after {timeout_s:g} s")
    thread.join()
    if raised:
        raise raised[0]
    return returned[0]
