"""The border of an accumulation window: where a run may be saved, and where it may be left."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from brain_dist import EXIT_TRY_AGAIN, StepVote, StopSignal, if_main_process

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SaveSchedule", "TrainingStopped", "WindowBorder"]

logger = logging.getLogger(__name__)

_SAVE, _STOP = 1, 2


class TrainingStopped(SystemExit):
    """Training was asked to stop, has saved, and can go on from there.

    As a `SystemExit` with code 75 it ends a script in a way that a wrapper can tell from a
    failure, and requeue.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(EXIT_TRY_AGAIN)
        self.reason = reason

    def __str__(self) -> str:
        """Say why."""
        return f"training stopped: {self.reason}"


class SaveSchedule:
    """When a checkpoint within an epoch is due: every so many minutes, or batches.

    Parameters
    ----------
    minutes, steps : float, int
        The interval; zero or less means never.
    """

    def __init__(self, minutes: float, steps: int) -> None:
        self.is_on = minutes > 0 or steps > 0
        self._seconds = minutes * 60
        self._steps = steps
        self.reset()

    def reset(self) -> None:
        """Count from here."""
        self._since = time.monotonic()
        self.steps_done = 0

    def is_due_by_count(self) -> bool:
        """Whether enough batches were done: all ranks know it alike."""
        return 0 < self._steps <= self.steps_done

    def is_due_by_clock(self) -> bool:
        """Whether enough time has passed; the clock that counts is rank 0's, so others say no."""
        return 0 < self._seconds < time.monotonic() - self._since and if_main_process()


class WindowBorder:
    """Lets all ranks save, and leave, at the same batch.

    Parameters
    ----------
    schedule : SaveSchedule
        When checkpoints are due.
    stop : StopSignal
        Whether this process was asked to stop.
    save : callable
        Writes the checkpoint.
    poll : callable
        Looks after a checkpoint that is being written in the background.
    """

    def __init__(
        self,
        schedule: SaveSchedule,
        stop: StopSignal,
        save: Callable[[], None],
        poll: Callable[[], None],
    ) -> None:
        self.schedule = schedule
        self._stop = stop
        self._save = save
        self._poll = poll
        self._vote = StepVote()
        self._asked = False  # for a checkpoint that was not written yet

    def passed(self) -> None:
        """Do at a border what has to be done there.

        Raises
        ------
        TrainingStopped
            On every rank, after saving, if any of them was asked to stop.
        """
        self._poll()
        agreed = self._vote.vote(self._wishes())
        if agreed or self.schedule.is_due_by_count():
            self.save()
        if agreed & _STOP:
            self._leave()

    def data_ended(self, *, validates: bool) -> None:
        """Do what has to be done at the end of the epoch's data.

        If there is an interval and a validation follows, save, so that a run that is killed in it
        need not train the epoch again.

        Raises
        ------
        TrainingStopped
            As from `passed`; here every rank waits for the others' answers.
        """
        agreed = self._vote.settle(self._wishes())
        if self.schedule.steps_done and (agreed or (validates and self.schedule.is_on)):
            self.save()
        if agreed & _STOP:
            self._leave()

    def passed_in_validation(self) -> None:
        """Leave if asked to, where `data_ended` has saved all there is to save.

        Without an interval nothing is saved there, and the stop waits for the next border.
        """
        if self.schedule.is_on and self._vote.vote(self._wishes()) & _STOP:
            self._leave()

    def save(self) -> None:
        """Write a checkpoint here and count the interval from it."""
        self._save()
        self._asked = False
        self.schedule.reset()

    def close(self) -> None:
        """Take leave of the other ranks' votes."""
        self._vote.close()

    def _wishes(self) -> int:
        """Say what this rank wants; a checkpoint only once, since the answer may come late."""
        wishes = _STOP if self._stop.requested else 0
        if self.schedule.is_due_by_clock() and not self._asked:
            self._asked = True
            wishes |= _SAVE
        return wishes

    def _leave(self) -> None:
        reason = self._stop.reason or "another rank was asked to"
        logger.info("Stopping: %s. Everything so far is saved.", reason)
        raise TrainingStopped(reason)
