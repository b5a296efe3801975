"""The command `brain-report`: curves of one run, or of several side by side."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from brain_core.charts.history import read_history
from brain_core.charts.page import report_as_html
from brain_core.charts.png import write_png

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_FAILED = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Write report.html and, with matplotlib, curves.png; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        names = _names(options.directories)
        runs = [read_history(p, name) for p, name in zip(options.directories, names, strict=True)]
    except FileNotFoundError as error:
        sys.stderr.write(f"brain-report: {error}\n")
        return _FAILED
    folder = Path(options.output or (options.directories[0] if len(runs) == 1 else "."))
    folder = folder.parent if folder.is_file() else folder
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "report.html"]
    written[0].write_text(report_as_html(runs, " · ".join(names)), encoding="utf-8")
    if find_spec("matplotlib") is not None:
        written.append(folder / "curves.png")
        write_png(runs, written[1])
    sys.stdout.write("".join(f"{path}\n" for path in written))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="brain-report",
        description="Write report.html, and curves.png if matplotlib is installed, of the runs "
        "that a Brain with a Report callback has trained.",
    )
    parser.add_argument(
        "directories", nargs="+", metavar="DIR", help="an experiment directory with history.jsonl"
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="where to write; by default the directory of a single run, else the present one",
    )
    return parser


def _names(directories: Sequence[str]) -> list[str]:
    """Return the last parts of paths, as many as tell them apart."""
    parts = [Path(path).resolve().parts for path in directories]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{path} ({number})" for number, path in enumerate(directories, 1)]
