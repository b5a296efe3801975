"""The interface of a training logger."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from brain_dist import main_process_only

__all__ = ["MainProcessLogger", "Stats", "TrainLogger", "plain_number"]

logger = logging.getLogger(__name__)

Stats = Mapping[str, Any]
_SETS = ("train", "valid", "test")


class TrainLogger:
    """A logger that recipes call at the end of a stage.

    `Brain` adds a logger that has ``state_dict`` and ``load_state_dict`` to the checkpoints, so
    that it continues after a restart.
    """

    def log_stats(
        self,
        stats_meta: Stats,
        train_stats: Stats | None = None,
        valid_stats: Stats | None = None,
        test_stats: Stats | None = None,
        verbose: bool = False,
    ) -> None:
        """Log the figures of an epoch.

        Parameters
        ----------
        stats_meta : mapping of str to scalar
            What the figures belong to: epoch, learning rate.
        train_stats, valid_stats, test_stats : mapping of str to scalar or list, optional
            A figure for the stage, or one for each of its batches.
        verbose : bool
            Also write to Python's logging.
        """
        raise NotImplementedError


class MainProcessLogger(TrainLogger):
    """A logger whose `_write` runs on the main process only."""

    is_verbose = False  # the default of log_stats

    @main_process_only
    def log_stats(
        self,
        stats_meta: Stats,
        train_stats: Stats | None = None,
        valid_stats: Stats | None = None,
        test_stats: Stats | None = None,
        verbose: bool | None = None,
    ) -> None:
        """Write the figures; see `TrainLogger.log_stats`."""
        sets = zip(_SETS, (train_stats, valid_stats, test_stats), strict=True)
        line = self._write(stats_meta, {name: s for name, s in sets if s is not None})
        if self.is_verbose if verbose is None else verbose:
            logger.info("%s", line)

    def _write(self, meta: Stats, sets: Mapping[str, Stats]) -> object:
        """Write figures that belong to ``meta``, by stage; return the line to log."""
        raise NotImplementedError


def plain_number(value: Any) -> Any:
    """Return a tensor or a NumPy number of one element as Python's, a list of them as a list.

    Examples
    --------
    >>> import torch
    >>> plain_number([torch.tensor(2), 0.5, "best"])
    [2, 0.5, 'best']
    """
    if isinstance(value, (list, tuple)):
        return [plain_number(one) for one in value]
    if hasattr(value, "item") and hasattr(value, "dtype"):
        return value.item()
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
