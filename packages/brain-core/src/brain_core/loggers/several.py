"""Several training loggers used as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from brain_core.loggers.base import TrainLogger
from brain_core.stateful import named_by_class

if TYPE_CHECKING:
    from collections.abc import Mapping

    from brain_core.loggers.base import Stats

__all__ = ["LoggerList"]


class LoggerList(TrainLogger):
    """Passes the figures of each call to several loggers, in their order.

    Parameters
    ----------
    *loggers : TrainLogger
        The loggers. Only the first one writes to Python's logging.

    Raises
    ------
    TypeError
        If one has no ``log_stats``.

    Examples
    --------
    >>> LoggerList(CSVLogger("train.csv"), JSONLinesLogger("train.jsonl"))  # doctest: +SKIP
    """

    def __init__(self, *loggers: TrainLogger) -> None:
        for logger in loggers:
            if not hasattr(logger, "log_stats"):
                raise TypeError(
                    f"LoggerList needs loggers, which have log_stats, got {logger!r}. Write "
                    "LoggerList(one, another)."
                )
        self.loggers = loggers

    def log_stats(
        self,
        stats_meta: Stats,
        train_stats: Stats | None = None,
        valid_stats: Stats | None = None,
        test_stats: Stats | None = None,
        verbose: bool | None = None,
    ) -> None:
        """Log the figures with each logger; see `TrainLogger.log_stats`."""
        first: dict[str, Any] = {} if verbose is None else {"verbose": verbose}
        for number, logger in enumerate(self.loggers):
            own = {"verbose": False} if number else first
            logger.log_stats(stats_meta, train_stats, valid_stats, test_stats, **own)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of those that have one."""
        return {
            name: logger.state_dict()
            for name, logger in named_by_class(self.loggers).items()
            if hasattr(logger, "state_dict")
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue; a logger that is new or that was left out since has no effect on the others."""
        for name, logger in named_by_class(self.loggers).items():
            if name in state and hasattr(logger, "load_state_dict"):
                logger.load_state_dict(state[name])
