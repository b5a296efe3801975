"""A panel as SVG, coloured by the page's style."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from brain_core.charts.panels import format_number, ticks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from brain_core.charts.history import Point
    from brain_core.charts.panels import Curve, Panel

__all__ = ["panel_as_svg"]

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 12, 34
_FEW_POINTS = 60


class Frame:
    """Maps steps and values to places in the picture.

    Parameters
    ----------
    last_step : float
        The end of the horizontal axis, which begins at 0.
    values : list of float
        All values that must be inside.
    """

    def __init__(self, last_step: float, values: list[float]) -> None:
        low, high = min(values), max(values)
        if 0 <= low <= 0.3 * high:
            low = 0.0  # an axis that nearly begins at 0 does
        margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        self.last_step = last_step
        self.low = low - margin if low != 0.0 else 0.0
        self.high = high + margin

    def x(self, step: float) -> float:
        """Return the horizontal place of a step."""
        return LEFT + (WIDTH - LEFT - RIGHT) * step / self.last_step

    def y(self, value: float) -> float:
        """Return the vertical place of a value."""
        share = (value - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share


def panel_as_svg(panel: Panel) -> str:
    """Return a chart of a panel; curve n of run r has the classes ``run-r`` and its source."""
    frame = Frame(panel.last_step, [y for curve in panel.curves for _, y in curve.points])
    parts = [*_grid(frame), *_marks(frame, panel)]
    for curve in panel.curves:
        parts += _curve(frame, curve)
    label = escape(panel.title, quote=True)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        + "".join(parts)
        + "</svg>"
    )


def _grid(frame: Frame) -> Iterator[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    for value in ticks(frame.low, frame.high, 5):
        y = frame.y(value)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>'
        yield _text(LEFT - 6, y + 3.5, "end", format_number(value))
    for step in ticks(0.0, frame.last_step):
        x = frame.x(step)
        yield _text(x, bottom + 16, "middle", format_number(step))
    yield f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>'
    yield _text(right, HEIGHT - 4, "end", "optimizer steps")


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _marks(frame: Frame, panel: Panel) -> Iterator[str]:
    bottom = HEIGHT - BOTTOM
    for run, step in panel.checkpoints:
        x = frame.x(step)
        yield f'<path class="saved run-{run % 8}" d="M{x:.1f} {bottom}v-6"/>'
    for run, step in panel.restarts:
        x = frame.x(step)
        yield (
            f'<path class="restart run-{run % 8}" d="M{x:.1f} {TOP}V{bottom}">'
            f"<title>restart at step {step}</title></path>"
        )


def _curve(frame: Frame, curve: Curve) -> Iterator[str]:
    places = [(frame.x(x), frame.y(y)) for x, y in curve.points]
    kind = f"{curve.source.lower()} run-{curve.run % 8}"
    path = " ".join(f"{x:.1f} {y:.1f}" for x, y in places)
    yield f'<path class="line {kind}" d="M{path}"/>'
    if curve.source != "steps" and len(places) <= _FEW_POINTS:
        for (x, y), point in zip(places, curve.points, strict=True):
            place = f'cx="{x:.1f}" cy="{y:.1f}" r="2.6"'
            yield f'<circle class="dot {kind}" {place}>{_tip(point)}</circle>'


def _tip(point: Point) -> str:
    return f"<title>step {point[0]:.0f}: {point[1]:.6g}</title>"
