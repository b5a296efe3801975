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
    rebuilt: Any = error.__reduce__()
    if (
        isinstance(rebuilt, tuple)
        and rebuilt[0] is type(error)
        and len(rebuilt[1]) == 1
        and isinstance(rebuilt[1][0], str)
    ):
        try:
            named = rebuilt[0](rebuilt[1][0] + where)
        except Exception:  # noqa: BLE001 - whatever a class of the user's does in its constructor
            return error
        vars(named).update(vars(error))
        if type(named) is type(error) and where in str(named):
            assert isinstance(named, BaseException)
            return named
    return error
