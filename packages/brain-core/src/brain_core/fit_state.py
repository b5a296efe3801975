"""The parts that one call of `Brain.fit` works with, and the counts that a Brain shows of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from typing_extensions import Self

    from brain_core.loop.fit_display import FitDisplay
    from brain_core.resume.recovery import Recovery
    from brain_core.stopping.step_boundary import StepBoundary

__all__ = ["FitState", "RunCount", "find_overrides"]


@dataclass
class FitState:
    """What belongs to one call of `Brain.fit`; a nested call has its own.

    Attributes
    ----------
    recovery : Recovery or None
        Saves and restores the run; None without a checkpointer, and in a nested fit.
    boundary : StepBoundary or None
        Where to save and stop, while the fit runs; None in a nested fit.
    has_user_sampler : bool
        Whether the recipe chose the order of the training data.
    is_nested : bool
        Whether a hook of another fit called this one.
    total_steps, total_epochs : int or None
        The optimizer steps and epochs of the whole fit; None where they are not known.
    ends_early : bool
        Whether to end after the present epoch.
    display : FitDisplay or None
        Shows the progress of the fit, if bars are drawn.
    """

    recovery: Recovery | None = None
    boundary: StepBoundary | None = None
    has_user_sampler: bool = False
    is_nested: bool = False
    total_steps: int | None = None
    total_epochs: int | None = None
    ends_early: bool = False
    display: FitDisplay | None = None

    @property
    def is_running(self) -> bool:
        """Whether the fit is under way."""
        return self.boundary is not None or self.is_nested


class RunCount:
    """An attribute of a Brain that stands in its `RunState` under the same name."""

    def __set_name__(self, owner: type, name: str) -> None:
        """Remember the name."""
        self._name = name

    @overload
    def __get__(self, brain: None, owner: type) -> Self: ...

    @overload
    def __get__(self, brain: Any, owner: type) -> int: ...

    def __get__(self, brain: Any, owner: type) -> Any:
        """Read it."""
        return self if brain is None else getattr(brain._run, self._name)  # noqa: SLF001

    def __set__(self, brain: Any, value: int) -> None:
        """Assign it, as recipes do."""
        setattr(brain._run, self._name, value)  # noqa: SLF001


def find_overrides(cls: type, base: type) -> frozenset[str]:
    """Return the names of ``base``'s methods that ``cls`` replaces.

    Examples
    --------
    >>> class Mine(dict):
    ...     def get(self, key): ...
    >>> sorted(find_overrides(Mine, dict) & {"get", "pop"})
    ['get']
    """
    return frozenset(
        name
        for name in dir(base)
        if not name.startswith("__") and getattr(cls, name, None) is not getattr(base, name)
    )
