"""Step boundaries, the ends of accumulation windows: where a run saves, and where it stops."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

from brain_ckpt import CheckpointSaveError
from brain_dist import (
    EXIT_REQUEUE,
    StepVote,
    StopSignal,
    gather_objects,
    get_world_size,
    if_main_process,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from brain_core.stopping.failed_saves import FailedSaves

__all__ = ["SaveSchedule", "StepBoundary", "TrainingStopped"]

logger = logging.getLogger(__name__)

# The shells' exit code of a process that Ctrl-C ended; such a run must not be requeued.
EXIT_INTERRUPTED = 130

_SAVE, _STOP = 1, 2
_INTERRUPT = "SIGINT"


class TrainingStopped(BaseException):
    """Training stopped on request; it was saved and can be resumed.

    In a script it is a `SystemExit` as well, which ends the process without a traceback and with
    ``code``. At an interactive prompt or in a notebook it is not, so that the session continues.
    After Ctrl-C it is a `KeyboardInterrupt` as well.

    Parameters
    ----------
    reason : str
        The signal, time limit or call that requested the stop.
    code : int
        The exit code of a script: 75, with which a wrapper should restart the run, or 130 after
        Ctrl-C, with which it should not.
    """

    code: str | int | None  # as SystemExit declares it

    def __init__(self, reason: str, code: int = EXIT_REQUEUE) -> None:
        super().__init__(reason, code)
        self.reason = reason
        self.code = code  # where it is a SystemExit, the interpreter reads this

    def __str__(self) -> str:
        """Return the reason."""
        return f"training stopped: {self.reason}"


class _ScriptStopped(TrainingStopped, SystemExit):
    pass


class _Interrupted(TrainingStopped, KeyboardInterrupt):
    pass


class _ScriptInterrupted(TrainingStopped, SystemExit, KeyboardInterrupt):
    pass


class SaveSchedule:
    """Decides when a checkpoint within an epoch is due: every so many minutes or batches.

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
        """Restart the interval."""
        self._since = time.monotonic()
        self.steps_done = 0

    def is_due_by_count(self) -> bool:
        """Return whether enough batches were done; the same on all ranks."""
        return 0 < self._steps <= self.steps_done

    def is_due_by_clock(self) -> bool:
        """Return whether enough time has passed on rank 0's clock; False on other ranks."""
        return 0 < self._seconds < time.monotonic() - self._since and if_main_process()


class StepBoundary:
    """Saves a checkpoint or stops training on all ranks after the same batch.

    Parameters
    ----------
    schedule : SaveSchedule
        When checkpoints are due.
    stop : StopSignal
        Whether this process was requested to stop.
    save : callable
        Saves the checkpoint.
    poll : callable
        Publishes a checkpoint that was written in the background.
    failed_saves : FailedSaves, optional
        Which failed saves the run survives; by default none.
    """

    def __init__(
        self,
        schedule: SaveSchedule,
        stop: StopSignal,
        save: Callable[[], None],
        poll: Callable[[], None],
        failed_saves: FailedSaves | None = None,
    ) -> None:
        self.schedule = schedule
        self._failed_saves = failed_saves
        self._stop_signal = stop
        self._save = save
        self._poll = poll
        self._vote = StepVote() if get_world_size() > 1 else None
        self._save_requested = False  # and not saved yet

    def reached(self) -> None:
        """Save or stop if a checkpoint is due or any rank requested it.

        Raises
        ------
        TrainingStopped
            On every rank, after saving, if a stop was requested on any of them.
        """
        self._publish()
        requests = self._requests_of_ranks()
        if requests & _STOP:
            self._save_before_stop()
            self._stop()
        elif requests or self.schedule.is_due_by_count():
            self._save_at_interval()

    def data_ended(self) -> None:
        """Save or stop at the end of the epoch's data.

        With an interval, save in any case: a run that is killed before the next save, for instance
        during the validation, then need not train the epoch again.

        Raises
        ------
        TrainingStopped
            As from `reached`; here every rank waits for the others' requests.
        """
        requests = self._requests()
        if self._vote is not None:
            requests = self._vote.settle(requests)
        if self.schedule.steps_done and requests & _STOP:
            self._save_before_stop()
        elif self.schedule.steps_done and (requests or self.schedule.is_on):
            self._save_at_interval()
        if requests & _STOP:
            self._stop()

    def reached_in_evaluation(self) -> None:
        """Stop an evaluation if any rank requested it; every rank calls it after each batch.

        A checkpoint that is written in the background is published as soon as it is complete: an
        evaluation that is killed must not lose the checkpoint from before it.

        Raises
        ------
        TrainingStopped
            On every rank, if a stop was requested on any of them.
        """
        self._publish()
        if self._requests_of_ranks() & _STOP:
            self._stop()

    def save(self) -> None:
        """Save a checkpoint and restart the interval."""
        self._save()
        self._save_requested = False
        self.schedule.reset()

    def close(self) -> None:
        """Stop taking part in votes."""
        if self._vote is not None:
            self._vote.close()

    def _publish(self) -> None:
        try:  # each step: a context that is entered takes longer
            self._poll()
        except CheckpointSaveError as error:
            if self._failed_saves is None:
                raise
            self._failed_saves.survive(error)

    def _save_at_interval(self) -> None:
        """Save; if that fails for a cause that may pass, save again after another interval."""
        with self._surviving():
            self.save()
            if self._failed_saves is not None:
                self._failed_saves.begun()
            return
        self._save_requested = False
        self.schedule.reset()

    def _save_before_stop(self) -> None:
        with self._surviving():  # the failure can be that of an earlier save in the background
            self.save()
            return
        self.save()

    def _surviving(self) -> AbstractContextManager[None]:
        return nullcontext() if self._failed_saves is None else self._failed_saves.surviving()

    def _requests_of_ranks(self) -> int:
        """Return the requests of all ranks, on several after some calls; every rank calls it."""
        requests = self._requests()
        return requests if self._vote is None else self._vote.vote(requests)

    def _requests(self) -> int:
        """Return this rank's requests; a save only once, since the vote may end later."""
        requests = _STOP if self._stop_signal.requested else 0
        if self.schedule.is_due_by_clock() and not self._save_requested:
            self._save_requested = True
            requests |= _SAVE
        return requests

    def _stop(self) -> None:
        """Raise on every rank with the same reason and the same exit code."""
        reason_of_rank = gather_objects(self._stop_signal.reason)
        self._stop_signal.clear()  # so that the caller can catch this and train or evaluate again
        first_rank = {
            reason: rank for rank, reason in reversed(list(enumerate(reason_of_rank))) if reason
        }
        reason = next(reason for reason in reason_of_rank if reason)
        ranks = len(reason_of_rank)
        where = f" (on rank {first_rank[reason]} of {ranks})" if ranks > 1 else ""
        if if_main_process():
            logger.info("Stopping: %s%s. The run is saved.", reason, where)
        raise _stopped(f"{reason}{where}", interrupted=_INTERRUPT in first_rank)


def _stopped(reason: str, *, interrupted: bool) -> TrainingStopped:
    interactive = hasattr(sys, "ps1")
    if interrupted:
        kind = _Interrupted if interactive else _ScriptInterrupted
        return kind(reason, EXIT_INTERRUPTED)
    return (TrainingStopped if interactive else _ScriptStopped)(reason)
