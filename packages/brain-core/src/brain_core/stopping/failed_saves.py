"""Failed saves at an interval, which a run survives a few times."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from brain_ckpt import CheckpointSaveError
from brain_dist import if_main_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

__all__ = ["FailedSaves"]

logger = logging.getLogger(__name__)


class FailedSaves:
    """Counts the saves at an interval that failed in a row for a cause that may pass.

    Parameters
    ----------
    limit : int
        The number of failed saves in a row that ends the run.
    is_interval : callable
        Takes the meta of a checkpoint and returns whether it was saved at an interval.
    on_failure : callable
        Called after each failure.
    """

    def __init__(
        self,
        limit: int,
        is_interval: Callable[[Mapping[str, Any]], bool],
        on_failure: Callable[[], None],
    ) -> None:
        self._limit = limit
        self._is_interval = is_interval
        self._on_failure = on_failure
        self._count = 0
        self._last_failed = False

    @contextmanager
    def surviving(self) -> Iterator[None]:
        """Log an error of a save in the block, as often as the limit allows.

        Raises
        ------
        CheckpointSaveError
            If the limit is reached, the cause cannot pass, or the save was not at an interval.
        """
        try:
            yield
        except CheckpointSaveError as error:
            self.survive(error)

    def survive(self, error: CheckpointSaveError) -> None:
        """Log an error of a save; raise it where `surviving` would."""
        if not error.may_pass or not self._is_interval(error.meta):
            raise error
        if not error.in_background and not self._last_failed:
            self._count = 0  # the save before this one was published
        self._count += 1
        self._last_failed = True
        self._on_failure()
        if self._count >= self._limit:
            raise error
        if if_main_process():
            logger.error(
                "A checkpoint was NOT saved (failure %d of %d in a row that end the run; see "
                "ckpt_interval_patience). Training goes on and saves again at the next "
                "interval: %s",
                self._count,
                self._limit,
                error,
            )

    def begun(self) -> None:
        """Note that a save was published, or has begun in the background."""
        if not self._last_failed:
            self._count = 0
        self._last_failed = False
