"""A SIGKILL that the kernel sends to this process after a delay, at any instruction."""

from __future__ import annotations

import ctypes
import signal
import sys

__all__ = ["kill_this_process_in"]

_CLOCK_MONOTONIC = 1
_SIGEV_SIGNAL = 0


class _SignalEvent(ctypes.Structure):
    """Linux's sigevent: a value, the signal, how it is sent, and padding up to 64 bytes."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("padding", ctypes.c_char * 48),
    )


class _TimeSpan(ctypes.Structure):
    """Linux's itimerspec: the interval and the first expiry, each in seconds and nanoseconds."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("first_s", ctypes.c_long),
        ("first_ns", ctypes.c_long),
    )


def kill_this_process_in(delay_s: float) -> bool:
    """Let the kernel kill this process after a delay; return False where it cannot.

    Another process would wake up late: on a busy machine, later than a training step takes.
    """
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    event = _SignalEvent(signal=signal.SIGKILL, notify=_SIGEV_SIGNAL)
    timer = ctypes.c_void_p()
    try:
        made = library.timer_create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer))
    except AttributeError:
        return False
    nanoseconds = max(1, int(delay_s * 1e9))
    span = _TimeSpan(first_s=nanoseconds // 10**9, first_ns=nanoseconds % 10**9)
    return made == 0 and bool(library.timer_settime(timer, 0, ctypes.byref(span), None) == 0)
