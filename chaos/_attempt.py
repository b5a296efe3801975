"""One start of a run: fork its processes, watch them, and kill them as planned."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import distributed

from brain_dist import ddp_init_group
from chaos import _mutants
from chaos._journal import Journal
from chaos._recipe import train
from chaos._status import KillPlan, Phase, Status

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from chaos._cases import Config

__all__ = ["Ended", "die_with_parent", "fork", "journal_of", "log_of", "open_pidfd", "start"]

HANG_S = 180.0  # after the kill, when other ranks count as hung
_RUN_S = 1200.0  # from the fork, for a run without a kill
_GROUP_TIMEOUT_S = 30.0  # how long gloo waits for a missing rank
_PR_SET_PDEATHSIG = 1


@dataclass
class Ended:
    """How one start ended.

    Attributes
    ----------
    how : str
        "killed", "finished", "failed" by itself, or "hung".
    phase : Phase or None
        Where the first killed rank was.
    targets : tuple of int
        The killed ranks.
    seconds : float
        The time from the fork until all ranks had ended.
    survivors_s : float
        How long the other ranks ran after the kill.
    """

    how: str
    phase: Phase | None = None
    targets: tuple[int, ...] = ()
    seconds: float = 0.0
    survivors_s: float = 0.0


def journal_of(folder: Path, attempt: int, rank: int) -> Path:
    """Return the path of a process's journal."""
    return folder / f"start{attempt}-rank{rank}.jsonl"


def log_of(folder: Path, attempt: int, rank: int) -> Path:
    """Return the path of a process's output."""
    return folder / f"start{attempt}-rank{rank}.log"


def start(
    config: Config, folder: Path, attempt: int, plan: KillPlan | None, mutant: str | None
) -> Ended:
    """Start a run, kill it as planned, and wait until all its processes have ended."""
    began = time.monotonic()
    status = Status(config.ranks, plan)
    pids: dict[int, int] = {}  # by rank
    port = _free_port()

    def child(rank: int) -> None:
        status.attach(rank)
        _redirect(log_of(folder, attempt, rank))
        _mutants.apply(mutant)
        _join_group(config.ranks, rank, port)
        train(config, folder, Journal(journal_of(folder, attempt, rank)), status)
        if config.ranks > 1:
            distributed.destroy_process_group()

    try:
        for rank in range(config.ranks):
            pids[rank] = fork(lambda rank=rank: child(rank))  # type: ignore[misc]  # bound early
        codes = _wait_until_kill(status, pids, plan)
        killed_at = time.monotonic()
        # The kernel's timer may have killed a rank already; a rank that failed was not killed.
        failed = any(code not in {0, -signal.SIGKILL} for code in codes.values())
        targets = () if plan is None or failed else plan.targets
        for rank in targets:
            if rank not in codes:
                os.kill(pids[rank], signal.SIGKILL)
        hung = not _reap(pids, codes, time.monotonic() + HANG_S)
        ended_at = time.monotonic()
        killed = tuple(rank for rank in targets if codes[rank] == -signal.SIGKILL)
        ended = Ended(_how_ended(codes, killed, hung=hung), None, killed, ended_at - began)
        if killed:
            ended.phase, ended.survivors_s = status.phase_of(killed[0]), ended_at - killed_at
        return ended
    finally:
        status.close()


def fork(function: Callable[[], None]) -> int:
    """Run a function in a fork of this process that exits like an interpreter; return its pid."""
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
    except BaseException:  # noqa: BLE001 - the child ends here after any error
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()  # noqa: SLF001 - as sys.exit does, without unwinding this stack
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def open_pidfd(pid: int) -> int:
    """Return a file descriptor that can be read once the process has ended."""
    if not hasattr(os, "pidfd_open"):
        raise RuntimeError(
            "os.pidfd_open is required, got a system without it; use Linux 5.3 or newer"
        )
    return os.pidfd_open(pid)


def die_with_parent() -> None:
    """Let the kernel end this process when its parent ends; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _redirect(path: Path) -> None:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _join_group(ranks: int, rank: int, port: int) -> None:
    """Form the group as a user's script does that a launcher has started."""
    torch.set_num_threads(1)
    if ranks == 1:
        return
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    numbers["MASTER_PORT"] = port
    os.environ.update({name: str(number) for name, number in numbers.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    options = {"device": "cpu", "distributed_backend": "gloo"}
    ddp_init_group(options, timeout_s=_GROUP_TIMEOUT_S)


def _wait_until_kill(status: Status, pids: dict[int, int], plan: KillPlan | None) -> dict[int, int]:
    """Wait until it is time to kill or a process has failed; return the codes of ended ranks."""
    codes: dict[int, int] = {}
    waits_from_fork = plan is not None and plan.phase is None
    deadline = time.monotonic() + (plan.delay_s if plan is not None and waits_from_fork else _RUN_S)
    ends = {open_pidfd(pid): rank for rank, pid in pids.items()}
    watched = [status.reading, *(end for end in ends if end >= 0)]
    try:
        while len(codes) < len(pids):
            timeout_s = max(0.0, deadline - time.monotonic())
            ready = select.select(watched, [], [], timeout_s)[0]
            for end in [each for each in ready if each != status.reading]:
                rank = ends[end]
                codes[rank] = os.waitstatus_to_exitcode(os.waitpid(pids[rank], 0)[1])
                watched.remove(end)
                if codes[rank]:
                    return codes  # the other ranks must find out by themselves
            if status.reading in ready:
                assert plan is not None
                time.sleep(plan.delay_s)
                return codes
            if not ready:
                return codes
    finally:
        for end in ends:
            os.close(end)
    return codes


def _reap(pids: dict[int, int], codes: dict[int, int], deadline: float) -> bool:
    """Wait for every process; kill those that hang, and return False if there were any."""
    hung = False
    for rank, pid in pids.items():
        if rank in codes:
            continue
        end = open_pidfd(pid)
        try:
            if not select.select([end], [], [], max(0.0, deadline - time.monotonic()))[0]:
                hung = True
                os.kill(pid, signal.SIGKILL)
            codes[rank] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        finally:
            os.close(end)
    return not hung


def _how_ended(codes: dict[int, int], killed: tuple[int, ...], *, hung: bool) -> str:
    if hung:
        return "hung"
    if killed:
        return "killed"
    return "failed" if any(codes.values()) else "finished"
