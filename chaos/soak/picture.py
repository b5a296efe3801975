"""A picture of a soak: one panel for each series over time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos._figure import new_figure
from chaos.soak.report import trends
from chaos.soak.series import WARM_UP

if TYPE_CHECKING:
    from pathlib import Path

    from chaos.soak.session import Session

__all__ = ["draw"]

_COLUMNS = 3
_COLOURS = {"grows": "#e45756", "steady": "#4c78a8"}
_OTHER_COLOUR = "#9e9e9e"


def draw(session: Session, path: Path) -> None:
    """Draw each series, with its verdict as the colour; the warm-up is shaded.

    Parameters
    ----------
    session : Session
        What was measured.
    path : Path
        The file of the picture.

    Raises
    ------
    ImportError
        Without matplotlib, which ``brain-core[plot]`` installs.
    """
    found = trends(session)
    if not found:
        return
    rows = -(-len(found) // _COLUMNS)
    figure, panels = new_figure((11, 2.1 * rows), rows, _COLUMNS)
    for axes, (name, trend) in zip(panels, found.items(), strict=False):
        series = session.series[name]
        colour = _COLOURS.get(trend.verdict, _OTHER_COLOUR)
        minutes = [time_s / 60 for time_s in series.times_s]
        axes.plot(minutes, series.values, color=colour, linewidth=0.9)
        axes.axvspan(0, WARM_UP * session.seconds / 60, color="#eeeeee", linewidth=0)
        unit = f", {series.kind.unit}" if series.kind.unit else ""
        axes.set_title(f"{series.kind.name}{unit}: {trend.verdict}", fontsize="small")
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.tick_params(labelsize="x-small")
    for axes in panels[len(found) :]:
        axes.set_visible(False)
    figure.supxlabel("minutes", fontsize="small")
    figure.savefig(path, dpi=150)
