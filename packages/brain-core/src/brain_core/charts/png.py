"""The report as a picture, drawn by matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from brain_core.charts.panels import panels_of

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from brain_core.charts.history import History
    from brain_core.charts.panels import Panel

__all__ = ["write_png"]

_COLUMNS = 3
_STYLES: dict[str, dict[str, Any]] = {
    "steps": {"linewidth": 0.9, "alpha": 0.5},
    "TRAIN": {"linewidth": 1.6, "marker": "o", "markersize": 3},
    "VALID": {"linewidth": 1.6, "linestyle": "--", "marker": "o", "markersize": 3, "mfc": "white"},
}


def write_png(runs: Sequence[History], path: str | os.PathLike[str]) -> None:
    """Draw the panels of runs into a PNG file.

    Parameters
    ----------
    runs : sequence of History
        One or several runs.
    path : str or Path
        The file.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # an extra
    except ImportError as error:
        raise ImportError("curves.png needs matplotlib: pip install 'brain-core[plot]'") from error
    panels = panels_of(runs)
    rows = max(1, -(-len(panels) // _COLUMNS))
    figure = Figure(figsize=(4.6 * _COLUMNS, 2.9 * rows), layout="constrained")
    places = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    for axes, panel in zip(places, panels, strict=False):
        _draw(axes, panel)
        if panel is panels[0] or len({curve.source for curve in panel.curves}) > 1:
            axes.legend(fontsize=7, frameon=False)
    for axes in places[len(panels) :]:
        axes.axis("off")
    figure.savefig(path, dpi=110, format="png")


def _draw(axes: Any, panel: Panel) -> None:
    for number, (_, step) in enumerate(panel.restarts):
        label = "restart" if number == 0 else None
        axes.axvline(step, color="#c0392b", linewidth=1, linestyle=":", label=label)
    for curve in panel.curves:
        style = _STYLES.get(curve.source, {"linewidth": 1.6})
        xs, ys = zip(*curve.points, strict=True)
        axes.plot(xs, ys, color=f"C{curve.run % 10}", label=curve.label, **style)
    if panel.checkpoints:
        steps = [step for _, step in panel.checkpoints]
        shown = axes.get_xaxis_transform()
        axes.plot(
            steps, [0.015] * len(steps), "|", color="0.4", transform=shown, label="checkpoint"
        )
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel("optimizer steps", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(color="0.9")
    axes.set_xlim(0, panel.last_step)
