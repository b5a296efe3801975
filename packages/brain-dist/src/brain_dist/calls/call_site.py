"""Names and places of the calls that a rank makes, for error messages."""

from __future__ import annotations

import contextlib
import inspect
import os
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

# The user's code is what calls these.
_LIBRARIES = (
    *("brain_dist", "brain_ckpt", "brain_data", "brain_core", "torch"),
    *("contextlib", "threading"),
)

_open_calls: ContextVar[tuple[str, ...]] = ContextVar("brain_dist_open_calls", default=())


@contextlib.contextmanager
def open_call(name: str) -> Iterator[None]:
    """Add a call to those that `describe_call` names, for the block."""
    token = _open_calls.set((*_open_calls.get(), name))
    try:
        yield
    finally:
        _open_calls.reset(token)


def describe_call(name: str) -> str:
    """Return a call with the calls around it and its place, "save() in fit() at train.py:43"."""
    calls = [*_open_calls.get(), name]
    if len(calls) > 1 and calls[-1] == calls[-2]:
        calls.pop()
    names = " in ".join(f"{call}()" for call in reversed(calls))
    frame = inspect.currentframe()
    return names if frame is None else f"{names} at {place_of(user_frame(frame))}"


def user_frame(frame: FrameType) -> FrameType:
    """Return the innermost frame of the user's code among a frame and its callers."""
    current: FrameType | None = frame
    while current is not None:
        module = str(current.f_globals.get("__name__", ""))
        if module.partition(".")[0] not in _LIBRARIES:
            return current
        frame, current = current, current.f_back
    return frame


def place_of(frame: FrameType) -> str:
    """Return file and line of a frame; a path below the working directory is relative."""
    path = frame.f_code.co_filename
    with contextlib.suppress(ValueError, OSError):  # another drive, a deleted directory
        relative = os.path.relpath(path)
        path = path if relative.startswith(os.pardir) else relative
    return f"{path}:{frame.f_lineno}"
