"""The report as one HTML file that needs nothing else."""

from __future__ import annotations

import time
from html import escape
from typing import TYPE_CHECKING, Any

from brain_core.charts.panels import format_number, panels_of
from brain_core.charts.svg import panel_as_svg

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from brain_core.charts.history import History
    from brain_core.charts.panels import Panel

__all__ = ["report_as_html"]

_LIGHT = "#1f6feb #d1570b #178a4c #a13bb8 #b8860b #0b8a99 #c2255c #5c6370"  # colours of runs
_DARK = "#6cb0ff #ff9d57 #5ad690 #d98cf0 #e6c15a #5fd3e0 #ff7fa8 #b0b8c4"
_STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --text: #1c2128; --soft: #5c6570;
  --line: #d9dee4; --card: #f6f8fa; --restart: #c0392b; LIGHT }
@media (prefers-color-scheme: dark) { :root { --back: #14171c; --text: #e4e8ee;
  --soft: #98a2ad; --line: #333a43; --card: #1b2027; --restart: #ff7b6b; DARK } }
body { margin: 0 auto; max-width: 1500px; padding: 20px; background: var(--back);
  color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 22px; margin: 0 0 4px; } p { color: var(--soft); margin: 0 0 16px; }
.scroll { overflow-x: auto; margin-bottom: 20px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: 5px 14px 5px 0; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 500; }
.panels { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); }
figure { margin: 0; padding: 12px 12px 6px; background: var(--card); border-radius: 8px; }
figcaption { font-weight: 600; display: flex; flex-wrap: wrap; gap: 4px 12px; }
.key { font-weight: 400; font-size: 13px; color: var(--soft); display: inline-flex; gap: 5px;
  align-items: center; } .key svg { width: 18px; height: 8px; }
svg { width: 100%; height: auto; display: block; }
text { font-size: 11px; fill: var(--soft); }
.grid { stroke: var(--line); } .axis { stroke: var(--soft); }
.line { fill: none; stroke-width: 2; stroke: var(--run); stroke-linejoin: round; }
.steps.line { stroke-width: 1.2; opacity: 0.55; } .valid.line { stroke-dasharray: 6 4; }
.dot { fill: var(--run); stroke: var(--card); } .dot.valid { fill: var(--card); stroke: var(--run);
  stroke-width: 1.8; }
.saved { stroke: var(--soft); stroke-width: 1.4; opacity: 0.7; }
.restart { stroke: var(--restart); stroke-dasharray: 3 3; stroke-width: 1.4; }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 2px;
  background: var(--run); margin-right: 8px; }
"""


def report_as_html(runs: Sequence[History], title: str = "Training report") -> str:
    """Return the page with a table of the runs and a chart for each figure.

    Parameters
    ----------
    runs : sequence of History
        One or several runs, which share charts.
    title : str
        The heading.
    """
    figures = "".join(_figure(panel, len(runs)) for panel in panels_of(runs))
    dashes = 'stroke-dasharray="3 3"'
    marks = (
        f"{_key('restart', dashes)} restart &nbsp; "
        '<span class="key"><svg viewBox="0 0 18 8"><path class="saved" d="M9 0v8"/></svg></span>'
        " checkpoint saved"
    )
    written = time.strftime("%Y-%m-%d %H:%M:%S")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_style()}</style></head><body>"
        f"<h1>{escape(title)}</h1><p>Written {written}. {marks}</p>"
        f'<div class="scroll">{_table(runs)}</div>'
        f'<div class="panels">{figures or "<p>No figures yet.</p>"}</div></body></html>\n'
    )


def _style() -> str:
    style = _STYLE
    for mode, colours in (("LIGHT", _LIGHT), ("DARK", _DARK)):
        named = (f"--c{number}: {colour};" for number, colour in enumerate(colours.split()))
        style = style.replace(mode, " ".join(named))
    return style + "".join(f".run-{n} {{ --run: var(--c{n}); }}\n" for n in range(8))


def _figure(panel: Panel, runs: int) -> str:
    keys = "".join(
        f'<span class="key run-{curve.run % 8}"><svg viewBox="0 0 18 8">'
        f'<path class="line {curve.source.lower()}" d="M0 4H18"/></svg>{escape(curve.label)}</span>'
        for curve in panel.curves
        if runs > 1 or len(panel.curves) > 1
    )
    return (
        f"<figure><figcaption>{escape(panel.title)}{keys}</figcaption>"
        f"{panel_as_svg(panel)}</figure>"
    )


def _key(kind: str, attributes: str) -> str:
    return (
        f'<span class="key"><svg viewBox="0 0 18 8"><path class="{kind}" {attributes} '
        'd="M0 4H18"/></svg></span>'
    )


def _table(runs: Sequence[History]) -> str:
    rows = [_summary(run) for run in runs]
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{escape(name)}</th>" for name in ("run", *names))
    body = "".join(
        f'<tr><td><span class="swatch run-{number % 8}"></span>{escape(run.name)}</td>'
        + "".join(f"<td>{escape(row.get(name, ''))}</td>" for name in names)
        + "</tr>"
        for number, (run, row) in enumerate(zip(runs, rows, strict=True))
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _summary(run: History) -> dict[str, str]:
    """Return the cells of a run's row of the table."""
    found: dict[str, str] = {}
    rows = [*run.steps, *run.stages]
    total = run.starts[-1].get("total_steps") if run.starts else None
    step = max((row["step"] for row in rows), default=0)
    found["steps"] = f"{step} of {total}" if total else f"{step}"
    epochs = [row["epoch"] for row in run.stages if row["epoch"] is not None]
    found["epochs"] = str(len(set(epochs)))
    for stage in ("TRAIN", "VALID", "TEST"):
        losses = [row["loss"] for row in run.stages if row["stage"] == stage and "loss" in row]
        if losses:
            found[f"{stage.lower()} loss"] = format_number(losses[-1])
        if stage == "VALID" and losses:
            found["best valid loss"] = format_number(min(losses))
    speeds = [row["samples_per_s"] for row in run.steps if "samples_per_s" in row]
    if speeds:
        found["samples/s"] = format_number(sorted(speeds)[len(speeds) // 2])
    found["skipped"] = str(sum(row.get("skipped_steps", 0) for row in run.steps))
    found["checkpoints"] = str(len(run.checkpoints))
    found["restarts"] = str(len(run.restarts))
    found["repeated steps"] = str(sum(row.get("repeated_steps", 0) for row in run.starts))
    found["duration"] = _duration([row["time"] for row in (*run.starts, *rows)])
    return found


def _duration(times: Iterable[Any]) -> str:
    times = list(times)
    seconds = int(max(times) - min(times)) if times else 0
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
