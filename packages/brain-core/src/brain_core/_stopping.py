"""How a run is stopped from outside, and what one rank's end does to the others."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from brain_dist import StopSignal, failing_together

from ._borders import SaveSchedule, TrainingStopped, WindowBorder
from ._passes import Passes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from brain_ckpt import Checkpointer

__all__ = ["StoppablePasses"]

_SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")


class StoppablePasses(Passes):
    """The part of `Brain` that leaves when it is asked to, on all ranks together.

    Signals are listened to where there is a checkpointer that has saved, or can save, what was
    done; `stop` always works. Whatever ends a pass on one rank ends it on all.
    """

    checkpointer: Checkpointer | None
    ckpt_interval_minutes: float
    ckpt_interval_steps: int
    stop_after_minutes: float

    _stop: StopSignal

    def stop(self, reason: str = "brain.stop() was called") -> None:
        """Ask `fit` to save and leave at the next border of an accumulation window.

        Parameters
        ----------
        reason : str
            For the log, and for whoever catches `TrainingStopped`.
        """
        self._stop.request(reason)

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Save at borders when it is due, and leave there when asked to: a fit's outermost ones."""
        if self._is_inner_fit:
            yield
            return
        limit_s = self.stop_after_minutes * 60 if self.stop_after_minutes > 0 else None
        if limit_s is not None and self.checkpointer is None:
            raise ValueError(
                f"stop_after_minutes needs a checkpointer to save with, got "
                f"{self.stop_after_minutes!r} and none. Give the Brain one, or leave it out."
            )
        self._renew_stop(limit_s, interrupts=True, reason=self._stop.reason)
        schedule = SaveSchedule(self.ckpt_interval_minutes, self.ckpt_interval_steps)
        self._border = WindowBorder(schedule, self._stop, self._save_intra_epoch_ckpt, self._poll)
        try:
            with self._listening(), failing_together(TrainingStopped):
                yield
                self._publish_last()
        except TrainingStopped:
            self._publish_last()
            raise
        finally:
            self._border.close()
            self._border = None
            if self.profiler is not None:
                self.profiler.stop()

    @contextmanager
    def _stoppable_evaluation(self) -> Iterator[None]:
        """Leave an evaluation at the next batch when asked to: there is nothing to save.

        What came as a signal and too late for `fit` is obeyed here. A Ctrl-C ends it at once.
        """
        if self._border is not None or self._is_inner_fit or self.checkpointer is None:
            with failing_together(TrainingStopped):
                yield
            return
        reason = self._stop.reason
        self._renew_stop(None, interrupts=False, reason=reason if reason in _SIGNALS else None)
        border = WindowBorder(SaveSchedule(), self._stop, save=_nothing, poll=_nothing)
        self._test_border = border
        try:
            with self._listening(), failing_together(TrainingStopped):
                yield
        finally:
            border.close()
            self._test_border = None

    def _renew_stop(
        self, time_limit_s: float | None, *, interrupts: bool, reason: str | None
    ) -> None:
        self._stop = StopSignal(time_limit_s=time_limit_s, interrupts=interrupts)
        if reason is not None:
            self._stop.request(reason)

    def _listening(self) -> AbstractContextManager[object]:
        return nullcontext() if self.checkpointer is None else self._stop

    def _publish_last(self) -> None:
        """Wait for a checkpoint that is being written, and let go of the directory."""
        if self.checkpointer is not None:
            self.checkpointer.close()

    def _poll(self) -> None:
        if self.checkpointer is not None:
            self.checkpointer.poll()

    def _save_intra_epoch_ckpt(self) -> None:
        raise NotImplementedError


def _nothing() -> None:
    pass
