"""What is drawn: panels of curves, the same for the page and for the picture."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from brain_core.charts.history import History, Point

__all__ = ["Curve", "Panel", "format_number", "panels_of", "thin", "ticks"]

_MOST_POINTS = 600
_ORDER = ("loss", "lr", "grad_norm", "samples_per_s", "data_wait", "skipped_steps")
_TITLES = {
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "samples_per_s": "samples per second",
    "data_wait": "share of time waiting for data",
    "skipped_steps": "steps skipped",
}
_LEFT_OUT = ("grad_norm_max",)
_SHOWN_IF_ANY = ("skipped_steps",)  # a chart of zeros says nothing


@dataclass
class Curve:
    """One line of a panel.

    Attributes
    ----------
    run : int
        The number of the run.
    source : str
        ``steps``, ``TRAIN`` or ``VALID``.
    label : str
        For the legend.
    points : list of (float, float)
        Optimizer steps and values.
    """

    run: int
    source: str
    label: str
    points: list[Point]


@dataclass
class Panel:
    """One chart.

    Attributes
    ----------
    title : str
        The figure.
    curves : list of Curve
        Its lines.
    restarts, checkpoints : list of (int, float)
        The run and the optimizer step of each mark.
    last_step : float
        The end of the axis.
    """

    title: str
    curves: list[Curve] = field(default_factory=list)
    restarts: list[tuple[int, float]] = field(default_factory=list)
    checkpoints: list[tuple[int, float]] = field(default_factory=list)
    last_step: float = 1.0


def panels_of(runs: Sequence[History]) -> list[Panel]:
    """Return a panel for each figure of runs: first the loss, then metrics, then the machine's.

    Skipped steps have one only if a step was skipped.
    """
    figures = [run.figures() for run in runs]
    names = list(dict.fromkeys(name for of_run in figures for name in of_run))
    metrics = [name for name in names if name not in _ORDER and name not in _LEFT_OUT]
    ordered = [_ORDER[0], *metrics, *_ORDER[1:]]
    restarts = [(n, row["step"]) for n, run in enumerate(runs) for row in run.restarts]
    saves = [(n, row["step"]) for n, run in enumerate(runs) for row in run.checkpoints]
    rows = [row for run in runs for row in (*run.steps, *run.stages)]
    last = max((row["step"] for row in rows), default=1) or 1
    panels = []
    for name in ordered:
        curves = [
            Curve(number, source, _label(source, run.name, len(runs)), thin(points))
            for number, run in enumerate(runs)
            for source, points in figures[number].get(name, {}).items()
            if source == "steps" or "steps" not in figures[number][name] or name not in _ORDER[1:]
        ]
        if name in _SHOWN_IF_ANY and not any(y for curve in curves for _, y in curve.points):
            continue
        if curves:
            title = _TITLES.get(name, name)
            panels.append(Panel(title, curves, restarts, saves, float(last)))
    return panels


def thin(points: list[Point], most: int = _MOST_POINTS) -> list[Point]:
    """Return at most so many points: means of neighbours, and the last one.

    Examples
    --------
    >>> thin([(1, 1.0), (2, 3.0), (3, 5.0), (4, 7.0), (5, 9.0)], 3)
    [(1.5, 2.0), (3.5, 6.0), (5, 9.0)]
    """
    size = -(-len(points) // most)
    if size <= 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        group[0]
        if len(group) == 1
        else (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Return round numbers between two values.

    Examples
    --------
    >>> ticks(0.0, 1.0)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    >>> ticks(0, 900)
    [0.0, 250.0, 500.0, 750.0]
    """
    if high <= low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = -(-low // step)
    count = int((high - first * step) / step * 1.000001) + 1
    return [round((first + number) * step, 12) for number in range(count)]


def format_number(value: float) -> str:
    """Return a number in at most six characters or so.

    Examples
    --------
    >>> format_number(0.25), format_number(12000), format_number(0.00003), format_number(3.0)
    ('0.25', '12k', '3e-05', '3')
    """
    for from_on, size, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= from_on:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"  # noqa: PLR2004  # four digits


def _label(source: str, run: str, runs: int) -> str:
    names = {"steps": "", "TRAIN": "train", "VALID": "valid", "TEST": "test"}
    what = names.get(source, source)
    if runs == 1:
        return what or "train, steps"
    return f"{run} {what}".strip()
