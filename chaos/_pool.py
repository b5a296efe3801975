"""Run several cases at once, each in a process that forks the starts of its run."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import traceback
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from chaos._attempt import fork, open_pidfd
from chaos._run import Kill, Outcome, run_case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from chaos._cases import Case

__all__ = ["run_cases"]

_READ_BYTES = 1 << 16


@dataclass
class _Job:
    case: Case
    pid: int
    pipe: int
    pidfd: int  # can be read once the process has ended
    buffer: bytes = b""
    outcome: Outcome | None = None
    errors: list[str] = field(default_factory=list)


def run_cases(
    cases: Iterator[Case],
    directory: Path,
    jobs: int,
    on_kill: Callable[[Kill], None],
    mutant: str | None = None,
) -> Iterator[Outcome]:
    """Run all cases; yield the outcome of each when it has ended.

    Parameters
    ----------
    cases : iterator of Case
        The next one is taken when fewer than ``jobs`` are running.
    directory : Path
        Where to put their files.
    jobs : int
        How many run at once.
    on_kill : callable
        Called after each kill.
    mutant : str, optional
        The piece of state that is not restored.
    """
    running: list[_Job] = []
    try:
        while True:
            while len(running) < jobs and (case := next(cases, None)) is not None:
                running.append(_start(case, directory, mutant))
            if not running:
                return
            watched = [each for job in running for each in (job.pipe, job.pidfd)]
            ready = select.select(watched, [], [])[0]
            for job in list(running):
                has_ended = job.pidfd in ready
                _read_messages(job, on_kill)
                if has_ended:
                    running.remove(job)
                    _release(job)
                    yield job.outcome or _failed_outcome(job)
    finally:
        for job in running:
            os.kill(job.pid, signal.SIGKILL)  # the kernel then kills what it started
            _release(job)


def _start(case: Case, directory: Path, mutant: str | None) -> _Job:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)

    def work() -> None:
        def send(message: dict[str, Any]) -> None:
            os.write(writing, (json.dumps(message) + "\n").encode())

        try:
            send({"outcome": asdict(run_case(case, directory, send, mutant))})
        except Exception:  # noqa: BLE001 - the parent reports it
            send({"error": traceback.format_exc()})

    pid = fork(work)
    os.close(writing)
    return _Job(case, pid, reading, open_pidfd(pid))


def _release(job: _Job) -> None:
    os.waitpid(job.pid, 0)
    os.close(job.pipe)
    os.close(job.pidfd)


def _read_messages(job: _Job, on_kill: Callable[[Kill], None]) -> None:
    """Read what is there without waiting: a leftover loader worker may keep the pipe open."""
    with contextlib.suppress(BlockingIOError):
        while data := os.read(job.pipe, _READ_BYTES):
            job.buffer += data
    *lines, job.buffer = job.buffer.split(b"\n")
    for line in lines:
        message = json.loads(line)
        if "kill" in message:
            on_kill(Kill(**message["kill"]))
        elif "error" in message:
            job.errors.append(message["error"])
        else:
            fields = message["outcome"]
            kills = [Kill(**each) for each in fields.pop("kills")]
            job.outcome = Outcome(**fields, kills=kills)


def _failed_outcome(job: _Job) -> Outcome:
    """Return the outcome of a case that chaos itself could not run to its end."""
    error = "".join(job.errors) or "its process ended without an error"
    outcome = Outcome(job.case.number, job.case.config.fields(), job.case.chained)
    outcome.problems.append(f"chaos itself failed: {error}")
    return outcome
