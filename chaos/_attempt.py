"""One start of a run: its processes are forked, watched, and killed when the moment has come."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import select
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from torch import distributed

from brain_dist import set_control_timeout
from chaos import _mutants
from chaos._board import Aim, Board, Phase
from chaos._journal import Journal
from chaos._recipe import train

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from chaos._cases import Config

__all__ = ["Ended", "die_with_parent", "end_of", "fork", "journal_of", "log_of", "start"]

HANG_S = 180.0  # from the kill until whoever is left counts as hanging: some waits of gloo's
_RUN_S = 1200.0  # from the fork, for a run that is not killed, or not yet
_GROUP_TIMEOUT_S = 30.0  # what gloo waits for a rank that does not come
_PR_SET_PDEATHSIG = 1


@dataclass
class Ended:
    """How one start ended.

    Attributes
    ----------
    how : str
        "killed", "finished", "failed" by itself, or "hung".
    phase : Phase or None
        Where the first rank that was killed was.
    targets : tuple of int
        The ranks that were killed.
    seconds : float
        How long it took, from the fork until all ranks were gone.
    alone_s : float
        How long the ranks that were not killed went on.
    """

    how: str
    phase: Phase | None = None
    targets: tuple[int, ...] = ()
    seconds: float = 0.0
    alone_s: float = 0.0


def journal_of(folder: Path, attempt: int, rank: int) -> Path:
    """Return where a process writes what it does."""
    return folder / f"start{attempt}-rank{rank}.jsonl"


def log_of(folder: Path, attempt: int, rank: int) -> Path:
    """Return where a process writes what it says."""
    return folder / f"start{attempt}-rank{rank}.log"


def start(config: Config, folder: Path, attempt: int, aim: Aim | None, mutant: str | None) -> Ended:
    """Start a run, kill it as aimed, and wait until all its processes have ended."""
    began = time.monotonic()
    board = Board(config.ranks, aim)
    pids: dict[int, int] = {}  # by rank

    def child(rank: int) -> None:
        board.join(rank)
        _redirect(log_of(folder, attempt, rank))
        _mutants.apply(mutant)
        _join_group(config.ranks, rank, folder / f"store{attempt}")
        train(config, folder, Journal(journal_of(folder, attempt, rank)), board)
        if config.ranks > 1:
            distributed.destroy_process_group()

    try:
        for rank in range(config.ranks):
            pids[rank] = fork(lambda rank=rank: child(rank))  # type: ignore[misc]  # bound early
        codes = _wait_for_aim(board, pids, aim)
        killed_at = time.monotonic()
        # A rank that the kernel has killed for us may be gone already; one that failed was not hit.
        by_itself = any(code not in {0, -signal.SIGKILL} for code in codes.values())
        targets = () if aim is None or by_itself else aim.targets
        for rank in targets:
            if rank not in codes:
                os.kill(pids[rank], signal.SIGKILL)
        hung = not _reap(pids, codes, time.monotonic() + HANG_S)
        now = time.monotonic()
        hit = tuple(rank for rank in targets if codes[rank] == -signal.SIGKILL)
        ended = Ended(_verdict(codes, hit, hung=hung), None, hit, now - began)
        if hit:
            ended.phase, ended.alone_s = board.phase_of(hit[0]), now - killed_at
        return ended
    finally:
        board.close()


def fork(function: Callable[[], None]) -> int:
    """Run a function in a fork of this process, which ends as an interpreter does; its pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        die_with_parent()
        function()
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, the child ends here
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()  # noqa: SLF001 - as sys.exit would, without this stack
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def end_of(pid: int) -> int:
    """Return a descriptor that can be read once the process has ended."""
    if not hasattr(os, "pidfd_open"):
        raise RuntimeError("the runs are watched through pidfd_open: start this on Linux 5.3 on")
    return os.pidfd_open(pid)


def die_with_parent() -> None:
    """Let the kernel end this process when the one that forked it ends, where there is a way."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _redirect(path: Path) -> None:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _join_group(ranks: int, rank: int, store: Path) -> None:
    torch.set_num_threads(1)
    if ranks == 1:
        return
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    os.environ.update({name: str(value) for name, value in world.items()})
    distributed.init_process_group(
        "gloo",
        init_method=store.as_uri(),
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=_GROUP_TIMEOUT_S),
    )
    set_control_timeout(_GROUP_TIMEOUT_S)


def _wait_for_aim(board: Board, pids: dict[int, int], aim: Aim | None) -> dict[int, int]:
    """Wait until it is time to kill, or any process has ended; returns the codes of those."""
    codes: dict[int, int] = {}
    waits_from_fork = aim is not None and aim.phase is None
    deadline = time.monotonic() + (aim.delay_s if aim is not None and waits_from_fork else _RUN_S)
    ends = {end_of(pid): rank for rank, pid in pids.items()}
    watched = [board.reading, *(end for end in ends if end >= 0)]
    try:
        while len(codes) < len(pids):
            left = max(0.0, deadline - time.monotonic())
            found = select.select(watched, [], [], left)[0]
            for end in [each for each in found if each != board.reading]:
                rank = ends[end]
                codes[rank] = os.waitstatus_to_exitcode(os.waitpid(pids[rank], 0)[1])
                watched.remove(end)
                if codes[rank]:
                    return codes  # the others have to notice by themselves
            if board.reading in found:
                assert aim is not None
                time.sleep(aim.delay_s)
                return codes
            if not found:
                return codes
    finally:
        for end in ends:
            os.close(end)
    return codes


def _reap(pids: dict[int, int], codes: dict[int, int], deadline: float) -> bool:
    """Wait for every process; returns False if some had to be killed since they hung."""
    hung = False
    for rank, pid in pids.items():
        if rank in codes:
            continue
        end = end_of(pid)
        try:
            if not select.select([end], [], [], max(0.0, deadline - time.monotonic()))[0]:
                hung = True
                os.kill(pid, signal.SIGKILL)
            codes[rank] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        finally:
            os.close(end)
    return not hung


def _verdict(codes: dict[int, int], hit: tuple[int, ...], *, hung: bool) -> str:
    if hung:
        return "hung"
    if hit:
        return "killed"
    return "failed" if any(codes.values()) else "finished"
