"""The status of a run in memory that it shares with the process that kills it.

A process writes its phase before the phase begins, so that after a kill the memory says where the
process was. It sends one byte through a pipe when the phase begins that the killer waits for.
"""

from __future__ import annotations

import enum
import mmap
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chaos._timer import kill_this_process_in

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["KillPlan", "Phase", "Status"]

_SLOTS = 2  # of 32 bits, for each rank
_PHASE, _WRITING = range(_SLOTS)


class Phase(enum.IntEnum):
    """Where a process is."""

    START = 0  # from the fork to the first batch
    STEP = 1  # training, the fetching of a batch included
    SAVE = 2  # in a save, until it is back in the loop
    WRITE = 3  # training or validating while a save is written in the background
    VALID = 4
    BETWEEN = 5  # between training, validation and the next epoch
    END = 6  # after the last epoch
    PROGRESS = 7  # not a place but an event: a checkpoint was acknowledged


@dataclass(frozen=True)
class KillPlan:
    """When to kill which ranks.

    Attributes
    ----------
    phase : Phase or None
        The phase to wait for; None waits from the fork.
    nth : int
        Which beginning of the phase, counted from 1.
    delay_s : float
        Seconds to wait after that.
    watched : int
        The rank whose phases count.
    targets : tuple of int
        The ranks to kill.
    """

    phase: Phase | None
    nth: int
    delay_s: float
    watched: int
    targets: tuple[int, ...]


class Status:
    """The shared memory and the pipe, made before the fork.

    Parameters
    ----------
    ranks : int
        The number of processes that write to it.
    plan : KillPlan, optional
        What the killer waits for.

    Attributes
    ----------
    reading : int
        The end of the pipe that can be read once the killer's phase has begun.
    seconds : dict of str to float
        The time that this process spent in each phase.
    times : dict of str to int
        How often each phase began in this process.
    """

    def __init__(self, ranks: int, plan: KillPlan | None) -> None:
        self._memory = mmap.mmap(-1, max(1, ranks) * _SLOTS * 4)
        self._words = memoryview(self._memory).cast("I")
        self._plan = plan
        self._rank = 0
        self._beginnings = 0  # of the phase that the killer waits for
        self.seconds: dict[str, float] = {}
        self.times: dict[str, int] = {}
        self._since = self._writing_since = time.perf_counter()
        self.reading, self._writing = os.pipe()

    def attach(self, rank: int) -> None:
        """Write as this rank, after the fork."""
        self._rank = rank
        os.close(self.reading)

    def close(self) -> None:
        """Close the pipe, in the killer."""
        os.close(self.reading)
        os.close(self._writing)

    def phase_of(self, rank: int) -> Phase:
        """Return where a rank is, or was when it was killed."""
        phase = Phase(self._words[rank * _SLOTS + _PHASE])
        in_background = bool(self._words[rank * _SLOTS + _WRITING])
        return Phase.WRITE if in_background and phase is not Phase.SAVE else phase

    def enter(self, phase: Phase) -> Phase:
        """Enter a phase; return the one before."""
        slot = self._rank * _SLOTS + _PHASE
        before = Phase(self._words[slot])
        self._words[slot] = phase
        self._add_seconds(before)
        self.count(phase)
        return before

    @contextmanager
    def inside(self, phase: Phase) -> Iterator[None]:
        """Enter a phase, and return to the one before unless an exception is raised."""
        before = self.enter(phase)
        yield
        self._words[self._rank * _SLOTS + _PHASE] = before
        self._add_seconds(phase)

    def count(self, phase: Phase) -> None:
        """Count a beginning of a phase, and notify the killer if it waits for this one."""
        self.times[phase.name] = self.times.get(phase.name, 0) + 1
        plan = self._plan
        if plan is None or plan.phase is not phase or plan.watched != self._rank:
            return
        self._beginnings += 1
        if self._beginnings != plan.nth:
            return
        if self._rank in plan.targets:
            kill_this_process_in(plan.delay_s)
        os.write(self._writing, b"!")

    def set_writing(self, flag: bool) -> None:
        """Set whether a save is being written in the background."""
        slot = self._rank * _SLOTS + _WRITING
        if flag and not self._words[slot]:
            self._words[slot] = 1
            self._writing_since = time.perf_counter()
            self.count(Phase.WRITE)
        elif not flag and self._words[slot]:
            self._words[slot] = 0
            lasted = time.perf_counter() - self._writing_since
            self.seconds["WRITE"] = self.seconds.get("WRITE", 0.0) + lasted

    def _add_seconds(self, phase: Phase) -> None:
        now = time.perf_counter()
        self.seconds[phase.name] = self.seconds.get(phase.name, 0.0) + now - self._since
        self._since = now
