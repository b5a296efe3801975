"""Figures that need no display."""

from __future__ import annotations

from typing import Any

__all__ = ["new_figure"]


def new_figure(size: tuple[float, float], rows: int, columns: int = 1, **options: Any) -> Any:
    """Return a figure of matplotlib's and its axes, row by row; all have the same abscissa.

    Parameters
    ----------
    size : tuple of float
        Width and height in inches.
    rows, columns : int
        Of axes.
    **options
        Of ``Figure.subplots``.

    Raises
    ------
    ImportError
        Without matplotlib, which ``brain-core[plot]`` installs.
    """
    from matplotlib.figure import Figure  # an extra

    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False, **options)
    panels = list(grid.flat)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels
