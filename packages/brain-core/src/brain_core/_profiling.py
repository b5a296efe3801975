"""Tracing a few steps with torch's profiler."""

from __future__ import annotations

import logging
import os
from typing import Any

__all__ = ["StepProfiler"]

logger = logging.getLogger(__name__)


class StepProfiler:
    """Trace the first steps of a training, write the trace, and get out of the way.

    Parameters
    ----------
    output_folder : str or Path
        The trace goes to ``profiler_logs`` in it, as JSON for chrome://tracing or TensorBoard.
    warmup, steps : int
        Steps to let pass, and steps to trace.
    """

    def __init__(self, output_folder: str | os.PathLike[str], warmup: int, steps: int) -> None:
        self._folder = os.path.join(output_folder, "profiler_logs")  # str or Path
        self._warmup = warmup
        self._steps = steps
        self._left = warmup + steps
        self._profile: Any = None

    def step(self) -> None:
        """Count one step; the first begins the tracing and the last one ends it."""
        if self._left <= 0:
            return
        self._profile = self._profile or self._start()
        self._profile.step()
        self._left -= 1
        if self._left == 0:
            self.stop()
            logger.info("The profiler has written its trace to %s; training goes on.", self._folder)

    def stop(self) -> None:
        """End the tracing early, if it is under way."""
        if self._profile is not None:
            self._profile.stop()
        self._profile = None
        self._left = 0

    def _start(self) -> Any:
        from torch import profiler  # slow to load, rarely asked for

        profile = profiler.profile(
            schedule=profiler.schedule(wait=0, warmup=self._warmup, active=self._steps, repeat=1),
            on_trace_ready=profiler.tensorboard_trace_handler(self._folder),
            record_shapes=True,
            with_stack=True,
        )
        profile.start()
        return profile
