"""Tracing a few steps with torch's profiler."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brain_core.options.run_options import RunOptions

__all__ = ["StepProfiler"]

logger = logging.getLogger(__name__)


class StepProfiler:
    """Trace the first steps of a training and write the trace.

    Parameters
    ----------
    output_folder : str or Path
        The trace goes to ``profiler_logs`` in it, as JSON for chrome://tracing or TensorBoard.
    warmup, steps : int
        Steps before the trace, and steps to trace.
    """

    def __init__(self, output_folder: str | os.PathLike[str], warmup: int, steps: int) -> None:
        self._folder = os.path.join(output_folder, "profiler_logs")  # str or Path
        self._warmup = warmup
        self._steps = steps
        self._left = warmup + steps
        self._profile: Any = None

    @classmethod
    def from_options(cls, options: RunOptions, hparams: Any) -> StepProfiler | None:
        """Return a profiler if the options ask for one, which writes to ``output_folder``."""
        if not options.profile_training:
            return None
        folder = getattr(hparams, "output_folder", ".")
        return cls(folder, options.profile_warmup, options.profile_steps)

    def step(self) -> None:
        """Count one step; the first begins the tracing and the last one ends it."""
        if self._left <= 0:
            return
        self._profile = self._profile or self._start()
        self._profile.step()
        self._left -= 1
        if self._left == 0:
            self.stop()
            logger.info(
                "The profiler has written its trace to %s; training continues.", self._folder
            )

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
