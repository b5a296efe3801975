"""The borders of accumulation windows: where a run is saved, and where it stops."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING

from brain_dist import EXIT_TRY_AGAIN, StepVote, StopSignal, gather_objects, if_main_process

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SaveSchedule", "TrainingStopped", "WindowBorder"]

logger = logging.getLogger(__name__)

# What a shell makes of a process that Ctrl-C ended: somebody wanted an end, not another try.
EXIT_INTERRUPTED = 130

_SAVE, _STOP = 1, 2
_INTERRUPT = "SIGINT"


class TrainingStopped(BaseException):
    """Training was asked to stop, has saved, and can go on from there.

    In a script it is a `SystemExit` as well, which ends the process without a traceback and with
    ``code``; at an interactive prompt or in a notebook it is not, so that the session lives on.
    After Ctrl-C it is a `KeyboardInterrupt` as well.

    Parameters
    ----------
    reason : str
        Who asked.
    code : int
        What a script ends with: 75, so that a wrapper can tell it from a failure and start the
        run again, or 130 after Ctrl-C, so that it does not.
    """

    code: str | int | None  # as SystemExit declares it

    def __init__(self, reason: str, code: int = EXIT_TRY_AGAIN) -> None:
        super().__init__(reason, code)
        self.reason = reason
        self.code = code  # where it is a SystemExit, the interpreter reads this

    def __str__(self) -> str:
        """Say why."""
        return f"training stopped: {self.reason}"


class _ScriptStopped(TrainingStopped, SystemExit):
    pass


class _Interrupted(TrainingStopped, KeyboardInterrupt):
    pass


class _ScriptInterrupted(TrainingStopped, SystemExit, KeyboardInterrupt):
    pass


class SaveSchedule:
    """When a checkpoint within an epoch is due: every so many minutes, or batches.

    Parameters
    ----------
    minutes, steps : float, int
        The interval; zero or less means never.
    """

    def __init__(self, minutes: float = 0, steps: int = 0) -> None:
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

    def passed_in_evaluation(self) -> None:
        """Leave if asked to, where all there is to save is saved; every rank calls it.

        A checkpoint that is still being written is published as soon as it is: an evaluation that
        is killed must not lose the one from before it.

        Raises
        ------
        TrainingStopped
            On every rank, if any of them was asked to stop.
        """
        self._poll()
        if self._vote.vote(self._wishes()) & _STOP:
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
        """Leave on every rank with the same reason and the same exit code."""
        asked = gather_objects(self._stop.reason)
        self._stop.clear()  # whoever catches this can train or evaluate on
        reasons = {reason: rank for rank, reason in reversed(list(enumerate(asked))) if reason}
        reason = next(reason for reason in asked if reason)
        where = f" (on rank {reasons[reason]} of {len(asked)})" if len(asked) > 1 else ""
        if if_main_process():
            logger.info("Stopping: %s%s. Everything so far is saved.", reason, where)
        raise _stopped(f"{reason}{where}", interrupted=_INTERRUPT in reasons)


def _stopped(reason: str, *, interrupted: bool) -> TrainingStopped:
    interactive = hasattr(sys, "ps1")
    if interrupted:
        kind = _Interrupted if interactive else _ScriptInterrupted
        return kind(reason, EXIT_INTERRUPTED)
    return (TrainingStopped if interactive else _ScriptStopped)(reason)
