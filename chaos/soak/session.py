"""A training and a reader in processes of their own, sampled until the time is over."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from chaos.soak.measure import measure_folder, measure_process
from chaos.soak.series import KINDS, Series
from chaos.soak.status import (
    READER_STATUS_FILE,
    SAVE_FOLDER,
    TRAINING_STATUS_FILE,
    read_status,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Session", "run"]

_MAX_SAMPLES = 2000
_MIN_INTERVAL_S = 0.5
_START_S = 300.0  # for the first round, on a busy machine
_END_S = 60.0
_ROOT = Path(__file__).parents[2]
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(_ROOT), *sys.path])}


@dataclass
class Session:
    """What was measured.

    Attributes
    ----------
    seconds : float
        How long.
    series : dict of str to Series
        By kind.
    counts : dict of str to float
        Steps and rounds of the training, and recoveries of the reader.
    problems : list of str
        Why a process ended by itself.
    """

    seconds: float = 0.0
    series: dict[str, Series] = field(
        default_factory=lambda: {name: Series(kind) for name, kind in KINDS.items()}
    )
    counts: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class _Process:
    """A module that runs in a process of its own, and writes its errors to a file."""

    def __init__(self, module: str, folder: Path, *arguments: str) -> None:
        self._errors = folder / f"{module}.txt"
        self._module = module
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(  # noqa: S603 - this package
                [sys.executable, "-m", f"chaos.soak.{module}", str(folder), *arguments],
                stdout=errors,
                stderr=errors,
                env={**os.environ, **_ONE_THREAD},
                start_new_session=True,  # Ctrl-C is for the command, which then stops them
            )
        self.pid = self._process.pid

    def problem(self) -> str | None:
        """Return what the process wrote last, if it has ended."""
        code = self._process.poll()
        if code is None:
            return None
        lines = self._errors.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join([f"the {self._module} ended by itself with code {code}:", *lines[-15:]])

    def end(self, how: signal.Signals) -> str | None:
        """Send a signal and wait; return what is wrong if the process does not end."""
        self._process.send_signal(how)
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return f"the {self._module} did not end within {_END_S:g} s of {how.name}"
        finally:
            with contextlib.suppress(ProcessLookupError):  # also the workers of its loader
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
        return None


def run(
    session: Session, folder: Path, seconds: float, leak: str, on_sample: Callable[[], None]
) -> None:
    """Train and read for a time, which begins after the first round; measure meanwhile.

    Parameters
    ----------
    session : Session
        Gets the samples, so that they remain after Ctrl-C.
    folder : Path
        A new directory.
    seconds : float
        How long to measure.
    leak : str
        What the training leaks on purpose, or "none".
    on_sample : callable
        Called after each sample.
    """
    interval_s = max(_MIN_INTERVAL_S, seconds / _MAX_SAMPLES)
    training = _Process("training", folder, str(interval_s), leak)
    reader = _Process("reader", folder, str(interval_s))
    try:
        for _ in _ticks(_START_S, interval_s):
            last = read_status(folder / TRAINING_STATUS_FILE)
            if last.get("rounds") or _has_ended(session, training, reader):
                break
        begin_s = time.monotonic()
        for _ in _ticks(seconds, interval_s):
            if _has_ended(session, training, reader):
                return
            session.seconds = time.monotonic() - begin_s
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ends just now
                _sample(session, folder, training.pid, reader.pid)
            status = read_status(folder / TRAINING_STATUS_FILE)
            _sample_status(session, status, last)
            session.counts = {**read_status(folder / READER_STATUS_FILE), **status}
            last = status
            on_sample()
    finally:
        ends = (reader.end(signal.SIGKILL), training.end(signal.SIGTERM))
        session.problems += [problem for problem in ends if problem and not session.problems]


def _ticks(seconds: float, interval_s: float) -> Iterator[None]:
    """Yield every interval, for a time."""
    begin_s = next_s = time.monotonic()
    while next_s - begin_s < seconds:
        yield
        next_s = max(next_s + interval_s, time.monotonic())
        time.sleep(max(0.0, next_s - time.monotonic()))


def _has_ended(session: Session, *processes: _Process) -> bool:
    session.problems += [problem for one in processes if (problem := one.problem())]
    return bool(session.problems)


def _sample(session: Session, folder: Path, training: int, reader: int) -> None:
    beside = measure_process(reader)
    measured = {
        **measure_process(training),
        **measure_folder(folder / SAVE_FOLDER),
        "reader_rss": beside["rss"],
        "reader_open_files": beside["open_files"],
    }
    for name, value in measured.items():
        session.series[name].add(session.seconds, value)


def _sample_status(session: Session, status: dict[str, float], last: dict[str, float]) -> None:
    """Add what the training says about itself, unless it has said nothing new."""
    if not last or status["time_s"] == last["time_s"]:
        return
    session.series["objects"].add(session.seconds, status["objects"])
    passed_s = status["time_s"] - last["time_s"]
    session.series["steps_per_s"].add(session.seconds, (status["steps"] - last["steps"]) / passed_s)
