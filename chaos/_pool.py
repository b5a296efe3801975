"""Several cases at once, each in a process that forks the starts of its run."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import traceback
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from chaos._attempt import end_of, fork
from chaos._run import Kill, Outcome, run_case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from chaos._cases import Case

__all__ = ["run_cases"]

_PIECE_BYTES = 1 << 16


@dataclass
class _Job:
    case: Case
    pid: int
    pipe: int
    end: int  # can be read once the process has ended
    buffer: bytes = b""
    outcome: Outcome | None = None
    said: list[str] = field(default_factory=list)


def run_cases(
    cases: Iterator[Case],
    room: Path,
    jobs: int,
    on_kill: Callable[[Kill], None],
    mutant: str | None = None,
) -> Iterator[Outcome]:
    """Run cases as long as the iterator gives any; yields each when it has ended.

    Parameters
    ----------
    cases : iterator of Case
        Asked for the next one when there is room for it.
    room : Path
        A folder for their files.
    jobs : int
        How many run at once.
    on_kill : callable
        Told of each kill when it has happened.
    mutant : str, optional
        What to leave out of what is restored.
    """
    running: list[_Job] = []
    try:
        while True:
            while len(running) < jobs and (case := next(cases, None)) is not None:
                running.append(_begin(case, room, mutant))
            if not running:
                return
            watched = [each for job in running for each in (job.pipe, job.end)]
            found = select.select(watched, [], [])[0]
            for job in list(running):
                has_ended = job.end in found
                _listen(job, on_kill)
                if has_ended:
                    running.remove(job)
                    _let_go(job)
                    yield job.outcome or _broken(job)
    finally:
        for job in running:
            os.kill(job.pid, signal.SIGKILL)  # and with it, by the kernel, what it has started
            _let_go(job)


def _begin(case: Case, room: Path, mutant: str | None) -> _Job:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)

    def work() -> None:
        def tell(what: dict[str, Any]) -> None:
            os.write(writing, (json.dumps(what) + "\n").encode())

        try:
            tell({"outcome": asdict(run_case(case, room, tell, mutant))})
        except Exception:  # noqa: BLE001 - said where it is seen
            tell({"said": traceback.format_exc()})

    pid = fork(work)
    os.close(writing)
    return _Job(case, pid, reading, end_of(pid))


def _let_go(job: _Job) -> None:
    os.waitpid(job.pid, 0)
    os.close(job.pipe)
    os.close(job.end)


def _listen(job: _Job, on_kill: Callable[[Kill], None]) -> None:
    """Read what there is. A worker that its run has left behind may keep the pipe open."""
    with contextlib.suppress(BlockingIOError):
        while data := os.read(job.pipe, _PIECE_BYTES):
            job.buffer += data
    *lines, job.buffer = job.buffer.split(b"\n")
    for line in lines:
        what = json.loads(line)
        if "kill" in what:
            on_kill(Kill(**what["kill"]))
        elif "said" in what:
            job.said.append(what["said"])
        else:
            fields = what["outcome"]
            kills = [Kill(**each) for each in fields.pop("kills")]
            job.outcome = Outcome(**fields, kills=kills)


def _broken(job: _Job) -> Outcome:
    """Return what stands for a case that the machine itself could not carry through."""
    said = "".join(job.said) or "its process ended without a word"
    outcome = Outcome(job.case.number, job.case.config.fields(), job.case.chained)
    outcome.problems.append(f"the machine failed: {said}")
    return outcome
