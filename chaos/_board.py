"""What a run tells of itself while it runs: memory that it shares with whoever kills it.

A phase is written into the memory before it begins, so that after a kill the memory says where the
process was. One byte goes through a pipe when the moment has come that the killer waits for.
"""

from __future__ import annotations

import enum
import mmap
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chaos._timer import kill_me_in

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Aim", "Board", "Phase"]

_SLOTS = 3  # of 32 bits, for each rank
_PHASE, _WRITING, _DONE = range(_SLOTS)


class Phase(enum.IntEnum):
    """Where a process is."""

    START = 0  # from the fork to the first batch
    STEP = 1  # training, the fetching of a batch included
    SAVE = 2  # in a save, until it is back in the loop
    WRITE = 3  # training or validating while a save is written in the background
    VALID = 4
    BORDER = 5  # between training, validation and the next epoch
    END = 6  # after the last epoch
    PROGRESS = 7  # no place, but a moment: a checkpoint was acknowledged


@dataclass(frozen=True)
class Aim:
    """When to kill, and whom.

    Attributes
    ----------
    phase : Phase or None
        The phase to wait for; None waits from the fork.
    nth : int
        Which of its beginnings, counted from 1.
    delay_s : float
        Seconds to wait after that.
    watched : int
        The rank that is looked at.
    targets : tuple of int
        The ranks that are killed.
    """

    phase: Phase | None
    nth: int
    delay_s: float
    watched: int
    targets: tuple[int, ...]


class Board:
    """The memory and the pipe, made before the fork.

    Parameters
    ----------
    ranks : int
        How many processes write to it.
    aim : Aim, optional
        What the killer waits for.
    """

    def __init__(self, ranks: int, aim: Aim | None) -> None:
        self._memory = mmap.mmap(-1, max(1, ranks) * _SLOTS * 4)
        self._words = memoryview(self._memory).cast("I")
        self._aim = aim
        self._rank = 0
        self._seen = 0
        self.seconds: dict[str, float] = {}  # in each phase; how often each began
        self.times: dict[str, int] = {}
        self._since = self._writing_since = time.perf_counter()
        self.reading, self._writing = os.pipe()

    def join(self, rank: int) -> None:
        """Be this rank, after the fork."""
        self._rank = rank
        os.close(self.reading)

    def close(self) -> None:
        """Let go of the pipe, in the killer."""
        os.close(self.reading)
        os.close(self._writing)

    def phase_of(self, rank: int) -> Phase:
        """Return where a rank is, or was when it was killed."""
        phase = Phase(self._words[rank * _SLOTS + _PHASE])
        in_background = bool(self._words[rank * _SLOTS + _WRITING])
        return Phase.WRITE if in_background and phase is not Phase.SAVE else phase

    def records_of(self, rank: int) -> int:
        """Return how far a rank has come, in records of its journal."""
        return self._words[rank * _SLOTS + _DONE]

    def enter(self, phase: Phase) -> Phase:
        """Be in a phase from here on; returns the one before."""
        here = self._rank * _SLOTS + _PHASE
        before = Phase(self._words[here])
        self._words[here] = phase
        self._count_seconds(before)
        self.tell(phase)
        return before

    @contextmanager
    def inside(self, phase: Phase) -> Iterator[None]:
        """Be in a phase for a while; an exception leaves it in there."""
        before = self.enter(phase)
        yield
        self._words[self._rank * _SLOTS + _PHASE] = before
        self._count_seconds(phase)

    def tell(self, phase: Phase) -> None:
        """Count that a phase has begun, and wake the killer if it waits for this one."""
        self.times[phase.name] = self.times.get(phase.name, 0) + 1
        aim = self._aim
        if aim is None or aim.phase is not phase or aim.watched != self._rank:
            return
        self._seen += 1
        if self._seen != aim.nth:
            return
        if self._rank in aim.targets:
            kill_me_in(aim.delay_s)
        os.write(self._writing, b"!")

    def set_writing(self, flag: bool) -> None:
        """Say whether a save is being written in the background."""
        slot = self._rank * _SLOTS + _WRITING
        if flag and not self._words[slot]:
            self._words[slot] = 1
            self._writing_since = time.perf_counter()
            self.tell(Phase.WRITE)
        elif not flag and self._words[slot]:
            self._words[slot] = 0
            lasted = time.perf_counter() - self._writing_since
            self.seconds["WRITE"] = self.seconds.get("WRITE", 0.0) + lasted

    def set_records(self, count: int) -> None:
        """Say how many records the journal has."""
        self._words[self._rank * _SLOTS + _DONE] = count

    def _count_seconds(self, phase: Phase) -> None:
        now = time.perf_counter()
        self.seconds[phase.name] = self.seconds.get(phase.name, 0.0) + now - self._since
        self._since = now
