"""The progress bar, which reads its figures only when it is drawn."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BarOptions", "ProgressBar", "should_show"]

_SECONDS_BETWEEN_UPDATES = 0.2


@dataclass(frozen=True)
class BarOptions:
    """What a bar shows.

    Parameters
    ----------
    enable : bool
        Whether to draw a bar.
    title : str
        Stands before the bar.
    colour : str
        A colour that tqdm accepts; empty for the terminal's default.
    keep : bool
        Whether the bar stays when the pass has ended.
    figures : callable, optional
        Returns further figures next to the bar, by name.
    """

    enable: bool = False
    title: str = ""
    colour: str = ""
    keep: bool = True
    figures: Callable[[], dict[str, str]] | None = None


class ProgressBar:
    """A tqdm bar over one pass; does nothing unless enabled.

    Parameters
    ----------
    options : BarOptions
        What it shows.
    batches : object
        The iterable of batches; its length, if it has one, is the total.
    initial : int
        Batches already done.
    figures : callable
        Returns the figures next to the bar, by name. Called when the bar is drawn.
    """

    def __init__(
        self,
        options: BarOptions,
        *,
        batches: Any,
        figures: Callable[[], dict[str, Any]],
        initial: int = 0,
    ) -> None:
        self._bar = _make_bar(batches, initial, options) if options.enable else None
        self._figures = figures
        self._more_figures = options.figures or dict
        self._waiting = 0
        self._due = 0.0

    def __enter__(self) -> Self:
        """Return the bar itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Draw the bar a last time unless an exception was raised, and close it."""
        if self._bar is not None:
            if exception[0] is None:
                self._draw()
            self._bar.close()

    def step(self) -> None:
        """Count one batch."""
        if self._bar is None:
            return
        self._waiting += 1
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _SECONDS_BETWEEN_UPDATES
            self._draw()

    def _draw(self) -> None:
        figures = {**self._figures(), **self._more_figures()}
        self._bar.set_postfix(figures, refresh=False)  # type: ignore[union-attr]  # checked before
        self._bar.update(self._waiting)  # type: ignore[union-attr]
        self._waiting = 0


def should_show(progressbar: bool | None, *, forbidden: bool) -> bool:
    """Return whether to draw bars: as given, by default on a terminal or in a notebook."""
    if isinstance(progressbar, Mapping):
        raise TypeError(
            f"progressbar must be True, False or None, got {progressbar!r}. Pass the arguments of "
            "a loader by name: train_loader_kwargs=..."
        )
    if progressbar is not None:
        return progressbar
    return not forbidden and (sys.stderr.isatty() or "ipykernel" in sys.modules)


def _make_bar(batches: Any, initial: int, options: BarOptions) -> Any:
    from tqdm.auto import tqdm  # a run without a bar need not load it

    return tqdm(
        desc=options.title or None,
        total=len(batches) if isinstance(batches, Sized) else None,
        initial=initial,
        dynamic_ncols=True,
        colour=options.colour or None,
        leave=options.keep,
        mininterval=0,
    )
