"""A metric of each validation, counted before a checkpoint is saved at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from brain_core.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["ValidMetric"]


class ValidMetric:
    """Calls a function once with the metric of each validation.

    A recipe saves its checkpoint in `on_stage_end`, before callbacks hear of the end. A state that
    is saved there has to count this validation already, so `save` looks for its metric.

    Parameters
    ----------
    owner : str
        The name of the callback, for errors.
    key : str
        The name of the metric in the figures.
    count : callable
        Takes the metric.
    """

    def __init__(self, owner: str, key: str, count: Callable[[float], None]) -> None:
        self.key = key
        self._owner = owner
        self._count = count
        self.begin()

    def begin(self) -> None:
        """Begin a fit."""
        self._stats: Mapping[str, Any] | None = None  # of a validation that is not counted yet
        self._missed = False
        self._trainings = 0  # since the last validation

    def stage_starts(self, stage: Stage, stats: Mapping[str, Any]) -> None:
        """Note where the figures of a pass will be.

        Raises
        ------
        ValueError
            If a whole epoch had no validation.
        """
        if stage is Stage.TRAIN:
            self._trainings += 1
            if self._trainings > 1:
                raise ValueError(
                    f"{self._owner} needs the {self.key!r} of a validation after each epoch, got "
                    "an epoch without one. Give fit a valid_set."
                )
        elif stage is Stage.VALID:
            self._stats, self._missed, self._trainings = stats, False, 0

    def save(self) -> None:
        """Count a validation that is ending, before a state is saved."""
        stats = self._stats
        if stats is not None and "loss" in stats:
            self._missed = self.key not in stats
            if not self._missed:
                self._stats = None
                self._count(float(stats[self.key]))

    def stage_ends(self, stats: Mapping[str, Any]) -> None:
        """Count a validation that has ended.

        Raises
        ------
        ValueError
            If its figures lack the metric, or got it only after a checkpoint was saved.
        """
        if self._stats is None:
            return
        if self.key not in stats:
            raise ValueError(
                f"{self._owner} needs {self.key!r} among the figures of the validation, got "
                f"{', '.join(stats)}. Set self.stage_stats[{self.key!r}] in on_stage_end."
            )
        if self._missed:
            raise ValueError(
                f"{self._owner} needs {self.key!r} before a checkpoint is saved, got it after "
                f"that. Set self.stage_stats[{self.key!r}] earlier in on_stage_end."
            )
        self.save()
