"""What a fit shows in the terminal beside its bars: the time left, and a line for each epoch."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from brain_core.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FitDisplay", "epoch_line", "time_left"]


class FitDisplay:
    """Estimates the time left over all epochs, and writes a line at the end of each epoch.

    Parameters
    ----------
    total_steps : int, optional
        The optimizer steps of the whole fit.
    total_epochs : int, optional
        The epochs of the whole fit.
    steps_done : callable
        Returns how many of these steps are done.
    epochs_begun : callable
        Returns how many of these epochs are begun.
    """

    def __init__(
        self,
        *,
        total_steps: int | None,
        total_epochs: int | None,
        steps_done: Callable[[], int],
        epochs_begun: Callable[[], int | None],
    ) -> None:
        self._total_steps, self._total_epochs = total_steps, total_epochs
        self._steps_done, self._epochs_begun = steps_done, epochs_begun
        self._first_step = steps_done()
        self._start = self._epoch_start = time.monotonic()
        self._losses: dict[Stage, float] = {}

    def begin_pass(self, stage: Stage) -> None:
        """Note the time at which an epoch begins."""
        if stage is Stage.TRAIN:
            self._epoch_start = time.monotonic()
            self._losses = {}

    def end_pass(self, stage: Stage, loss: float) -> None:
        """Note the mean loss of a pass."""
        if stage is not Stage.TEST:
            self._losses[stage] = loss

    def end_epoch(self, epoch: int | None) -> None:
        """Write the line of an epoch, above the bars if there are any."""
        from tqdm.auto import tqdm

        seconds = time.monotonic() - self._epoch_start
        line = epoch_line(self.name_of(epoch), self._losses, tqdm.format_interval(seconds))
        tqdm.write(line, file=sys.stdout if "ipykernel" in sys.modules else sys.stderr)

    def name_of(self, epoch: int | None) -> str:
        """Return an epoch's number, and how many there are where they are numbered from 1."""
        total = self._total_epochs
        if total is None or epoch is None or epoch != self._epochs_begun():
            return f"epoch {epoch}"
        return f"epoch {epoch:>{len(str(total))}}/{total}"

    def time_left(self) -> dict[str, str]:
        """Return the time left over all epochs by the name ``left``; empty if it is not known."""
        seconds = time_left(
            time.monotonic() - self._start, self._first_step, self._steps_done(), self._total_steps
        )
        if seconds is None:
            return {}
        from tqdm.auto import tqdm

        return {"left": tqdm.format_interval(seconds)}


def time_left(seconds: float, first: int, done: int, total: int | None) -> float | None:
    """Return the seconds that the other steps take if they are as fast as those of this process.

    Validations and checkpoints of the time that has passed are in it.

    Parameters
    ----------
    seconds : float
        The time since the process took up the fit.
    first, done : int
        The steps that were done then, and are done now.
    total : int, optional
        All steps.

    Examples
    --------
    >>> time_left(10.0, first=50, done=100, total=200)
    20.0
    >>> time_left(10.0, first=50, done=50, total=200) is None
    True
    """
    if total is None or done <= first:
        return None
    return seconds * max(0, total - done) / (done - first)


def epoch_line(name: str, losses: dict[Stage, float], took: str) -> str:
    """Return the line of an epoch, whose columns stand below those of the epochs before.

    Examples
    --------
    >>> epoch_line("epoch  9/10", {Stage.TRAIN: 0.25, Stage.VALID: 1e-7}, "00:12")
    'epoch  9/10   train loss 0.25        valid loss 1e-07       time 00:12'
    """
    figures = "".join(f"{s.name.lower()} loss {loss:<12.4g}" for s, loss in losses.items())
    return f"{name}   {figures}time {took}"
