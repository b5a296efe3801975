"""Errors that ranks send to each other."""

from __future__ import annotations

import pickle
import traceback
from typing import Any, NamedTuple


class RanksLostError(RuntimeError):
    """A collective failed because ranks did not take part: killed, stuck or elsewhere."""


class RemoteError(RuntimeError):
    """The cause of an exception that other ranks raised first; holds their tracebacks."""


class ErrorReport(NamedTuple):
    """An exception in the form in which a rank sends it to the others."""

    payload: bytes
    trace: str

    def rebuild(self) -> BaseException:
        """Return the exception, of the same type and with the same arguments."""
        try:
            error = pickle.loads(self.payload)  # noqa: S301 - from a process of this very run
        except Exception:  # noqa: BLE001 - whatever a class of the user's does in its constructor
            return RuntimeError(f"an error that cannot be sent between ranks:\n{self.trace}")
        assert isinstance(error, BaseException)
        return error


def report_error(error: BaseException) -> ErrorReport:
    """Return the report of an exception; one that cannot be pickled becomes a RuntimeError."""
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        payload = pickle.dumps(error)
        same_type = type(pickle.loads(payload)) is type(error)  # noqa: S301 - written one line above
    except Exception:  # noqa: BLE001 - whatever a class of the user's does when pickled
        same_type = False
    if not same_type:
        payload = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return ErrorReport(payload, trace)


def with_rank_numbers(error: BaseException, ranks: list[int], world_size: int) -> BaseException:
    """Return the exception with the ranks at the end of its text, if its text is one string."""
    suffix = f" (on rank {', '.join(map(str, ranks))} of {world_size})"
    try:
        reduced: Any = error.__reduce__()
        make, args = reduced[:2]
        if make is not type(error) or len(args) != 1 or not isinstance(args[0], str):
            return error
        named = make(args[0] + suffix)
        vars(named).update(vars(error))
    except Exception:  # noqa: BLE001 - whatever a class of the user's does in its constructor
        return error
    if type(named) is not type(error) or suffix not in str(named):
        return error
    assert isinstance(named, BaseException)
    return named
