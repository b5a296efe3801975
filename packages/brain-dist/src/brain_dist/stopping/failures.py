"""Propagate an exception of one rank to all ranks."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, NoReturn

from brain_dist import compat
from brain_dist.calls import operation
from brain_dist.calls.bounded import call_within
from brain_dist.control_group import collectives_are_local, from_bytes, to_bytes
from brain_dist.errors import (
    ErrorReport,
    RanksLostError,
    RemoteError,
    is_loss,
    report_error,
    with_rank_numbers,
)
from brain_dist.world import get_rank, get_world_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.distributed.distributed_c10d import Store

GRACE_S = 10.0

_POLL_EVERY_S = 1.0
# How long a rank that lost another one waits for a report of the first failure.
_REPORT_S = 3.0
# Attribute of an exception that was published in the store already.
_IS_REPORTED = "_brain_dist_reported"

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def propagate_failures(
    *raised_on_all_ranks: type[BaseException], grace_s: float = GRACE_S
) -> Iterator[None]:
    """Raise an exception that leaves this block on one rank on every rank.

    Every rank enters the block, and runs collectives of any kind inside.  If a rank fails, the end
    of its process wakes the ranks that wait for it in a collective; they raise the same exception,
    with that rank's number at the end of its text.  If the failed process does not end, for
    instance in a debugger, the others cannot be woken: after `grace_s` seconds they log its
    traceback and exit, with the code of a `SystemExit`, else 1.  A rank that was killed, or that
    does not reach a collective within its timeout, is named by a `RanksLostError`.

    It does nothing in one process.  On several, a thread reads the store once a second.

    Parameters
    ----------
    *raised_on_all_ranks : type of BaseException
        Exceptions that every rank raises, after having agreed on it; they pass unchanged.
    grace_s : float
        Seconds between another rank's exception and the end of a process that still waits for it.

    Raises
    ------
    BaseException
        The exception of the rank that failed first; its cause holds that rank's traceback.
    RanksLostError
        If ranks are gone without a report.
    """
    if collectives_are_local() or get_world_size() == 1:
        yield
        return
    exchange = _FailureExchange(compat.default_store(), get_rank(), get_world_size())
    search_before, operation.search_lost_ranks = operation.search_lost_ranks, False
    try:
        with exchange.watched(grace_s):
            yield
    except raised_on_all_ranks:
        raise
    except BaseException as error:
        exchange.report_or_replace(error)
        raise
    finally:
        operation.search_lost_ranks = search_before


class _FailureExchange:
    """What the ranks tell each other about failures in one block, through the store.

    Parameters
    ----------
    store : Store
        A store that all ranks can read and write.
    rank, world_size : int
        Rank and size of the run.
    """

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self._store = store
        self._rank = rank
        self._others = set(range(world_size)) - {rank}
        self._world_size = world_size
        # Every rank counts its blocks alike, so none reads what an earlier block wrote.
        block = store.add(f"brain_dist/blocks/{rank}", 1)
        self._first_failure_key = f"brain_dist/failed/{block}"
        self._left_key = f"brain_dist/left/{block}"

    @contextlib.contextmanager
    def watched(self, grace_s: float) -> Iterator[None]:
        """End this process if it still waits `grace_s` seconds after another rank has failed."""
        done = threading.Event()
        watch = threading.Thread(
            target=self._watch, args=(done, grace_s), name="brain_dist-failures", daemon=True
        )
        watch.start()
        try:
            yield
        finally:
            done.set()
            watch.join(_REPORT_S)

    def report_or_replace(self, error: BaseException) -> None:
        """Publish this rank's exception; if another rank caused it, raise that rank's instead."""
        reported = getattr(error, _IS_REPORTED, False)
        lost = is_loss(error)
        message = None
        if not reported and not lost:
            message = b64encode(to_bytes((self._rank, report_error(error)))).decode()
        # A store does not answer when its process is stopped.
        with contextlib.suppress(RuntimeError, ValueError, TimeoutError):
            call_within(_REPORT_S, lambda: self._publish(message))
        if reported or not lost:
            return
        first_failure: tuple[int, ErrorReport] | None = None
        missing = set(self._others)
        with contextlib.suppress(RuntimeError, ValueError, TimeoutError):
            first_failure = call_within(2 * _REPORT_S, lambda: self._search(missing))
        replacement: BaseException
        cause: BaseException
        if first_failure is not None and first_failure[0] != self._rank:
            rank, report = first_failure
            replacement = with_rank_numbers(report.rebuild(), [rank], self._world_size)
            cause = RemoteError(f"raised on rank {rank}:\n{report.trace}")
        else:
            replacement, cause = RanksLostError(self._lost_message(sorted(missing), error)), error
        with contextlib.suppress(AttributeError):
            setattr(replacement, _IS_REPORTED, True)  # for a block around this one
        raise replacement from cause

    def _publish(self, message: str | None) -> None:
        if message is not None:
            self._store.compare_set(self._first_failure_key, "", message)
        self._store.set(f"{self._left_key}/{self._rank}", "left")

    def _search(self, missing: set[int]) -> tuple[int, ErrorReport] | None:
        """Wait for the first failure; meanwhile remove from `missing` the ranks that have left."""
        deadline = time.monotonic() + _REPORT_S
        while time.monotonic() < deadline and missing:
            if self._store.check([self._first_failure_key]):
                return self._first_failure()
            missing -= {r for r in missing if self._store.check([f"{self._left_key}/{r}"])}
            time.sleep(0.02)
        return None

    def _first_failure(self) -> tuple[int, ErrorReport]:
        message = b64decode(self._store.get(self._first_failure_key))
        failure: tuple[int, ErrorReport] = from_bytes(message)
        return failure

    def _lost_message(self, missing: list[int], error: BaseException) -> str:
        who = (
            f"rank(s) {', '.join(map(str, missing))} did not"
            if missing
            else "the others have left without this one"
        )
        first_line = (str(error).splitlines() or [""])[0]
        return (
            f"every rank has to take part in every collective within its timeout, got on rank "
            f"{self._rank}: {who}; read the log of the missing rank(s) first: killed, out of "
            f"memory, stopped, or slow, and then give more time with "
            f"ddp_init_group(timeout_s=...). The error on this rank: {first_line}"
        )

    def _watch(self, done: threading.Event, grace_s: float) -> None:
        with contextlib.suppress(RuntimeError, ValueError):
            while not done.wait(_POLL_EVERY_S):
                if self._store.check([self._first_failure_key]):
                    rank, report = self._first_failure()
                    if rank != self._rank and not done.wait(grace_s):
                        _end_process(self._rank, rank, report, grace_s)
                    return


def _end_process(rank: int, failed: int, report: ErrorReport, grace_s: float) -> NoReturn:
    error = report.rebuild()
    code = error.code if isinstance(error, SystemExit) else 1
    logger.critical(
        "Rank %d raised %s, and its process still runs. Rank %d has waited for it for %g s, "
        "cannot be woken, and exits. Raised on rank %d:\n%s",
        failed,
        type(error).__name__,
        rank,
        grace_s,
        failed,
        report.trace,
    )
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else 1)
