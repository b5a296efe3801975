"""Early stopping: end training when a metric no longer improves."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, Literal

from brain_core.callbacks.base import Callback
from brain_core.callbacks.valid_metric import ValidMetric
from brain_core.stage import Stage
from brain_dist import ddp_broadcast

if TYPE_CHECKING:
    from collections.abc import Mapping

    from brain_core.brain import Brain

__all__ = ["EarlyStopping"]

logger = logging.getLogger(__name__)


class EarlyStopping(Callback):
    """End `fit` when a metric of the validation no longer improves.

    On several ranks the metric of rank 0 decides for all. The script continues after `fit`, and a
    restart of it does not train further.

    Parameters
    ----------
    key : str
        The name of the metric in ``brain.stage_stats``. ``loss`` is always there; a recipe adds
        others in `on_stage_end`, before it saves a checkpoint.
    patience : int
        Validations in a row without improvement after which to end.
    direction : {"min", "max"}
        Whether a lower or a higher metric is better.
    min_delta : float
        How much better than the best so far a metric has to be. NaN is no improvement.

    Attributes
    ----------
    best : float or None
        The best metric so far.
    waited : int
        Validations since then.

    Raises
    ------
    ValueError
        For an argument that cannot work; during training if there is no such metric.
    """

    def __init__(
        self,
        key: str = "loss",
        patience: int = 3,
        direction: Literal["min", "max"] = "min",
        min_delta: float = 0.0,
    ) -> None:
        if patience < 1:
            raise ValueError(f"EarlyStopping needs a patience of 1 or more, got {patience!r}.")
        if direction not in ("min", "max"):
            raise ValueError(f"EarlyStopping needs 'min' or 'max', got direction={direction!r}.")
        if not min_delta >= 0:
            raise ValueError(f"EarlyStopping needs min_delta of 0 or more, got {min_delta!r}.")
        self.patience = patience
        self.direction = direction
        self.min_delta = min_delta
        self._metric = ValidMetric("EarlyStopping", key, self._count)
        self.best: float | None = None
        self.waited = 0

    def on_fit_start(self, brain: Brain, *, is_resumed: bool) -> None:
        """Begin to count, or end at once where the run had ended before it was restarted."""
        if not is_resumed:
            self.best, self.waited = None, 0
        self._metric.begin()
        if ddp_broadcast(self.waited >= self.patience):
            logger.info("EarlyStopping has ended this fit before: %s.", self._why())
            brain.end_fit_after_epoch()

    def on_stage_start(self, brain: Brain, stage: Stage, epoch: int | None) -> None:
        """Note where the figures of a validation will be."""
        del epoch
        self._metric.stage_starts(stage, brain.stage_stats)

    def on_stage_end(
        self, brain: Brain, stage: Stage, stats: Mapping[str, Any], epoch: int | None
    ) -> None:
        """Count the validation, and end after the epoch if patience is exhausted."""
        if stage is not Stage.VALID:
            return
        self._metric.stage_ends(stats)
        if ddp_broadcast(self.waited >= self.patience):
            logger.info("EarlyStopping ends training after epoch %s: %s.", epoch, self._why())
            brain.end_fit_after_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, with the validation that is ending."""
        self._metric.save()
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with counts that were saved."""
        self.best, self.waited = state["best"], state["waited"]

    def _count(self, value: float) -> None:
        if math.isnan(value):
            is_better = False
        elif self.best is None:
            is_better = True
        elif self.direction == "min":
            is_better = value < self.best - self.min_delta
        else:
            is_better = value > self.best + self.min_delta
        if is_better:
            self.best = value
        self.waited = 0 if is_better else self.waited + 1

    def _why(self) -> str:
        return (
            f"{self._metric.key} has not improved on {self.best} in {self.waited} validations, and "
            f"the patience is {self.patience}"
        )
