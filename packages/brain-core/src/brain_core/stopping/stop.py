"""Stop requests during a fit or an evaluation, and the step boundaries that act on them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from brain_core.stage import Stage
from brain_core.stopping.step_boundary import SaveSchedule, StepBoundary, TrainingStopped
from brain_dist import StopSignal, propagate_failures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from brain_ckpt import Checkpointer
    from brain_core.stopping.failed_saves import FailedSaves

__all__ = ["StopControl"]

_SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")
# Of this process: what listens to signals, the innermost last, and a signal that nothing acted on.
_listening: list[StopSignal] = []
_unserved: list[str] = []


class StopControl:
    """Stops a fit or an evaluation on request, on all ranks after the same batch.

    Signals are handled only with a checkpointer, which can save the progress. A signal that comes
    after the last step boundary of a fit or an evaluation stops the one around it, or the next one
    of this process, also of another Brain. `request` always works. An exception that ends a fit or
    an evaluation on one rank ends it on all.
    """

    def __init__(self) -> None:
        self._signal = StopSignal()
        self._boundary: StepBoundary | None = None  # of the fit under way
        self._test_boundary: StepBoundary | None = None

    def request(self, reason: str) -> None:
        """Request a stop at the next step boundary."""
        self._signal.request(reason)

    @contextmanager
    def during_fit(
        self,
        checkpointer: Checkpointer | None,
        schedule: SaveSchedule,
        save: Callable[[], None],
        *,
        stop_after_minutes: float,
        failed_saves: FailedSaves | None = None,
    ) -> Iterator[StepBoundary]:
        """Yield the step boundary of a fit; publish a pending save when the fit ends.

        Parameters
        ----------
        checkpointer : Checkpointer, optional
            Where ``save`` saves.
        schedule : SaveSchedule
            When checkpoints are due.
        save : callable
            Saves a checkpoint; every rank calls it.
        stop_after_minutes : float
            Stop after this time; zero or less means never.
        failed_saves : FailedSaves, optional
            Which failed saves the run survives; by default none.

        Raises
        ------
        ValueError
            If there is a time limit and no checkpointer.
        """
        limit_s = stop_after_minutes * 60 if stop_after_minutes > 0 else None
        if limit_s is not None and checkpointer is None:
            raise ValueError(
                f"stop_after_minutes needs a checkpointer to save with, got "
                f"{stop_after_minutes!r} and none. Give the Brain one, or leave it out."
            )
        reason = _take_unserved() or self._signal.reason
        self._renew(limit_s, interrupts=True, reason=reason)
        poll, close = _no_save, _no_save
        if checkpointer is not None:
            poll, close = checkpointer.poll, checkpointer.close
        boundary = self._boundary = StepBoundary(schedule, self._signal, save, poll, failed_saves)
        try:
            with self._listen(checkpointer), propagate_failures(TrainingStopped):
                yield boundary
                close()
        except TrainingStopped:
            close()
            raise
        finally:
            self._boundary = None
            boundary.close()

    @contextmanager
    def during_evaluation(
        self, checkpointer: Checkpointer | None, *, nested: bool
    ) -> Iterator[None]:
        """Stop an evaluation on request; a nested evaluation is stopped by the fit's step boundary.

        Ctrl-C ends it at once.

        Parameters
        ----------
        checkpointer : Checkpointer, optional
            Without one, signals keep their usual effect.
        nested : bool
            Whether a hook of `fit` called the evaluation.
        """
        if nested or checkpointer is None:
            with propagate_failures(TrainingStopped):
                yield
            return
        self._renew(None, interrupts=False, reason=_take_unserved())
        boundary = StepBoundary(SaveSchedule(), self._signal, save=_no_save, poll=_no_save)
        self._test_boundary = boundary
        try:
            with self._listen(checkpointer), propagate_failures(TrainingStopped):
                yield
        finally:
            self._test_boundary = None
            boundary.close()

    def boundary_of_evaluation(self, stage: Stage) -> StepBoundary | None:
        """Return the step boundary of an evaluation, None if stopping would lose progress."""
        if stage is Stage.TEST:
            return self._test_boundary
        boundary = self._boundary
        return boundary if boundary is not None and boundary.schedule.is_on else None

    def _renew(self, time_limit_s: float | None, *, interrupts: bool, reason: str | None) -> None:
        self._signal = StopSignal(time_limit_s=time_limit_s, interrupts=interrupts)
        if reason is not None:
            self._signal.request(reason)

    @contextmanager
    def _listen(self, checkpointer: Checkpointer | None) -> Iterator[None]:
        if checkpointer is None:
            yield
            return
        own = self._signal
        _listening.append(own)
        try:
            with own:
                yield
        except KeyboardInterrupt:
            own.clear()  # the second Ctrl-C
            raise
        finally:
            _listening.remove(own)
            _hand_over(own)


def _hand_over(stop: StopSignal) -> None:
    """Leave a signal that nothing acted on to what is around a fit or an evaluation, or follows."""
    if stop.reason in _SIGNALS:
        if _listening:
            _listening[-1].request(stop.reason)
        else:
            _unserved[:] = [stop.reason]
        stop.clear()


def _take_unserved() -> str | None:
    return _unserved.pop() if _unserved else None


def _no_save() -> None:
    pass
