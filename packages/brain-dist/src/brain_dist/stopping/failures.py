"""What ends one rank ends all: the others learn of it, and who it was."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, NoReturn

from torch import distributed

from brain_dist import compat, control_group
from brain_dist.control_group import from_bytes, must_not_wait, to_bytes
from brain_dist.errors import ErrorReport, RanksLostError, RemoteError, naming_ranks, report
from brain_dist.world import get_rank, get_world_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.distributed.distributed_c10d import Store

GRACE_S = 10.0

_LOOK_EVERY_S = 1.0
# How long a rank that lost somebody waits for a word of who it was.
_REPORT_S = 3.0
_TOLD = "_brain_dist_told"

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def failing_together(*agreed: type[BaseException], grace_s: float = GRACE_S) -> Iterator[None]:
    """Let an exception that leaves this block on one rank end the block on every rank.

    Every rank enters it, and runs collectives of any kind inside.  Those that wait for a rank that
    has left by an exception are woken by its process's end, and raise the same exception, its text
    followed by that rank's number.  Where that process lives on, for instance in a debugger, the
    others cannot be woken: `grace_s` seconds later they log what it raised and end, with the code
    of a `SystemExit`, else 1.  A rank that was killed, or that did not come before a collective's
    timeout, is named by a `RanksLostError`.

    It changes nothing in one process.  On several, a thread looks into the store once a second.

    Parameters
    ----------
    *agreed : type of BaseException
        What all ranks raise together, after having agreed on it; it passes as it is.
    grace_s : float
        Seconds between another rank's exception and the end of a process that still waits for it.

    Raises
    ------
    BaseException
        What the first rank that failed has raised; its cause holds that rank's traceback.
    RanksLostError
        If ranks are gone without a word.
    """
    if must_not_wait() or get_world_size() == 1:
        yield
        return
    block = _Block(compat.default_store(), get_rank(), get_world_size())
    searches, control_group.somebody_else_searches = control_group.somebody_else_searches, True
    try:
        with block.watched(grace_s):
            yield
    except agreed:
        raise
    except BaseException as error:
        block.explain(error)
        raise
    finally:
        control_group.somebody_else_searches = searches


class _Block:
    """What the ranks know of each other inside one block, by way of the store.

    Parameters
    ----------
    store : Store
        Where all ranks can read and write.
    rank, world_size : int
        This rank's place.
    """

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self._store = store
        self._rank = rank
        self._others = set(range(world_size)) - {rank}
        self._world_size = world_size
        # Every rank counts its blocks alike, so none reads what was left by an earlier one.
        number = store.add(f"brain_dist/blocks/{rank}", 1)
        self._first = f"brain_dist/failed/{number}"
        self._left = f"brain_dist/left/{number}"

    @contextlib.contextmanager
    def watched(self, grace_s: float) -> Iterator[None]:
        """End this process if it still waits some time after another rank has failed."""
        done = threading.Event()
        watch = threading.Thread(
            target=self._watch, args=(done, grace_s), name="brain_dist-failing", daemon=True
        )
        watch.start()
        try:
            yield
        finally:
            done.set()
            watch.join(_REPORT_S)

    def explain(self, error: BaseException) -> None:
        """Tell the others of this rank's exception, or raise what caused it on another one."""
        told = getattr(error, _TOLD, False)
        lost = _is_loss(error)
        with contextlib.suppress(RuntimeError, ValueError):
            if not told and not lost:
                note = b64encode(to_bytes((self._rank, report(error))))
                self._store.compare_set(self._first, "", note.decode())
            self._store.set(f"{self._left}/{self._rank}", "here")
        if told or not lost:
            return
        first, missing = self._search()
        cause: BaseException
        if first is not None and first[0] != self._rank:
            rank, found = first
            again = naming_ranks(found.rebuild(), [rank], self._world_size)
            cause = RemoteError(f"raised on rank {rank}:\n{found.trace}")
        else:
            again, cause = RanksLostError(self._lost_text(missing, error)), error
        with contextlib.suppress(AttributeError):
            setattr(again, _TOLD, True)  # for a block around this one
        raise again from cause

    def _search(self) -> tuple[tuple[int, ErrorReport] | None, list[int]]:
        """Wait for the report of who failed first, or else find out who says nothing."""
        missing = set(self._others)
        with contextlib.suppress(RuntimeError, ValueError):
            deadline = time.monotonic() + _REPORT_S
            while time.monotonic() < deadline and missing:
                if self._store.check([self._first]):
                    return self._first_report(), []
                missing = {r for r in missing if not self._store.check([f"{self._left}/{r}"])}
                time.sleep(0.02)
        return None, sorted(missing)

    def _first_report(self) -> tuple[int, ErrorReport]:
        found: tuple[int, ErrorReport] = from_bytes(b64decode(self._store.get(self._first)))
        return found

    def _lost_text(self, missing: list[int], error: BaseException) -> str:
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
            f"ddp_init_group(timeout_s=...). What this rank saw: {first_line}"
        )

    def _watch(self, done: threading.Event, grace_s: float) -> None:
        with contextlib.suppress(RuntimeError, ValueError):
            while not done.wait(_LOOK_EVERY_S):
                if self._store.check([self._first]):
                    rank, found = self._first_report()
                    if rank != self._rank and not done.wait(grace_s):
                        _end_process(self._rank, rank, found, grace_s)
                    return


def _is_loss(error: BaseException) -> bool:
    """Whether an exception comes of other ranks' absence, by itself or by what it was made of."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if isinstance(found, (RanksLostError, distributed.DistError)):
            return True
        # torch has no type of its own for what gloo raises.
        if isinstance(found, RuntimeError) and any(
            word in str(found) for word in ("gloo/", "pair closure", "NCCL", "ProcessGroup")
        ):
            return True
        found = found.__cause__ or found.__context__
    return False


def _end_process(rank: int, failed: int, found: ErrorReport, grace_s: float) -> NoReturn:
    error = found.rebuild()
    code = error.code if isinstance(error, SystemExit) else 1
    logger.critical(
        "Rank %d raised %s, and its process lives on. Rank %d has waited for it for %g s, cannot "
        "be woken, and ends here. Raised on rank %d:\n%s",
        failed,
        type(error).__name__,
        rank,
        grace_s,
        failed,
        found.trace,
    )
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else 1)
