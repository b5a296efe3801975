"""Errors that travel between ranks."""

from __future__ import annotations

import pickle
import traceback
from typing import Any, NamedTuple


class RanksLostError(RuntimeError):
    """A collective ended without some ranks: killed, stuck, or on another way."""


class RemoteError(RuntimeError):
    """The cause of an exception that was first raised on other ranks; holds their tracebacks."""


class ErrorReport(NamedTuple):
    """An exception as one rank tells the others about it."""

    payload: bytes
    trace: str

    def rebuild(self) -> BaseException:
        """Make the exception again, of the same type and with the same arguments."""
        try:
            error = pickle.loads(self.payload)  # noqa: S301 - from a process of this very run
        except Exception:  # noqa: BLE001 - whatever a class of the user's does in its constructor
            return RuntimeError(f"an error that cannot be sent between ranks:\n{self.trace}")
        assert isinstance(error, BaseException)
        return error


def report(error: BaseException) -> ErrorReport:
    """Describe an exception for the other ranks.

    One that does not survive pickling becomes a RuntimeError that quotes it.
    """
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        payload = pickle.dumps(error)
        same = type(pickle.loads(payload)) is type(error)  # noqa: S301 - written one line above
    except Exception:  # noqa: BLE001 - whatever a class of the user's does when pickled
        same = False
    if not same:
        payload = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return ErrorReport(payload, trace)


def naming_ranks(error: BaseException, ranks: list[int], world_size: int) -> BaseException:
    """Return a like exception whose text ends with the ranks, where its text is a plain string."""
    where = f" (on rank {', '.join(map(str, ranks))} of {world_size})"
    try:
        rebuilt: Any = error.__reduce__()
        make, args = rebuilt[:2]
        if make is not type(error) or len(args) != 1 or not isinstance(args[0], str):
            return error
        named = make(args[0] + where)
        vars(named).update(vars(error))
    except Exception:  # noqa: BLE001 - whatever a class of the user's does in its constructor
        return error
    if type(named) is not type(error) or where not in str(named):
        return error
    assert isinstance(named, BaseException)
    return named
