"""The report of a soak: a table with a verdict on each series, and a JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from chaos._report import aligned

if TYPE_CHECKING:
    from pathlib import Path

    from chaos.soak.series import Trend
    from chaos.soak.session import Session

__all__ = ["is_steady", "text", "trends", "write"]

_SMALL = 100


def trends(session: Session) -> dict[str, Trend]:
    """Return the trend of each series that was measured, by kind."""
    found = {name: one.trend(session.seconds) for name, one in session.series.items()}
    return {name: trend for name, trend in found.items() if trend is not None}


def is_steady(session: Session) -> bool:
    """Return whether something was measured, nothing grows and no process ended by itself."""
    found = trends(session)
    return bool(found) and not (
        session.problems or any(trend.verdict == "grows" for trend in found.values())
    )


def text(session: Session) -> str:
    """Return the report for a terminal."""
    counts = session.counts
    head = (
        f"{session.seconds / 60:.1f} minutes: {counts.get('steps', 0):,.0f} steps in "
        f"{counts.get('rounds', 0):,.0f} rounds, {counts.get('recoveries', 0):,.0f} recoveries "
        f"by the reader\n"
    )
    table = [["after the warm-up", "start", "middle", "end", "per hour", "verdict"]]
    for name, trend in trends(session).items():
        kind = session.series[name].kind
        label = f"{kind.name}, {kind.unit}" if kind.unit else kind.name
        numbers = [_number(one) for one in (trend.start, trend.middle, trend.end)]
        table.append([label, *numbers, f"{trend.per_hour:+,.1f}", trend.verdict])
    return "\n".join([head, aligned(table), *session.problems])


def write(session: Session, folder: Path) -> None:
    """Write soak.txt and soak.json, which has all samples."""
    content = {
        "seconds": session.seconds,
        "counts": session.counts,
        "problems": session.problems,
        "trends": {name: asdict(trend) for name, trend in trends(session).items()},
        "series": {name: asdict(one) for name, one in session.series.items()},
    }
    (folder / "soak.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    (folder / "soak.txt").write_text(text(session), encoding="utf-8")


def _number(value: float) -> str:
    return f"{value:,.2f}" if abs(value) < _SMALL and value % 1 else f"{value:,.0f}"
