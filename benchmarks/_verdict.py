"""What was measured, beside what, and whether its aim is met.

    python benchmarks/_verdict.py ROWS [--json FILE]

A benchmark calls `report` for each figure that has an aim. `nox -s bench` collects the rows of all
of them in a file, and prints them with this program as one table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

ROWS = "BRAIN_BENCH_ROWS"
METHOD = (
    "Times below a millisecond are the least of many short runs, in turn with what they are "
    "compared with; others are medians."
)


@dataclass(frozen=True)
class Row:
    """One figure and its aim.

    Parameters
    ----------
    name : str
        What was measured.
    ours : float
        The figure, in ``unit``.
    peer : float, optional
        The same of what it is compared with, ``beside``.
    aim : float
        Of the ratio to the peer; without a peer, of the figure itself.
    at_least : bool
        Whether the aim is a lower bound, as for a speed.
    """

    name: str
    ours: float
    unit: str
    aim: float
    beside: str = ""
    peer: float | None = None
    at_least: bool = False

    @property
    def ratio(self) -> float | None:
        """The figure relative to the peer's."""
        return None if self.peer is None else self.ours / self.peer

    @property
    def is_met(self) -> bool:
        """Whether the figure is as good as the aim."""
        reached = self.ours if self.ratio is None else self.ratio
        return reached >= self.aim if self.at_least else reached <= self.aim

    def cells(self) -> list[str]:
        """Return the row of a table."""
        bound = "≥" if self.at_least else "≤"
        has_peer = self.peer is not None
        return [
            self.name,
            f"{self.ours:.4g} {self.unit}",
            f"{self.beside}: {self.peer:.4g} {self.unit}" if has_peer else "",
            f"{self.ratio:.2f}" if has_peer else "",
            f"{bound} {self.aim:g}" + ("" if has_peer else f" {self.unit}"),
            "met" if self.is_met else "missed",
        ]


def take_quick() -> bool:
    """Return whether the program was called with ``--quick``, and remove that argument."""
    is_quick = "--quick" in sys.argv
    if is_quick:
        sys.argv.remove("--quick")
    return is_quick


def report(  # those of a row
    name: str,
    ours: float,
    unit: str,
    aim: float,
    beside: str = "",
    peer: float | None = None,
    *,
    at_least: bool = False,
) -> None:
    """Print a row, and add it to the file that ``BRAIN_BENCH_ROWS`` names."""
    row = Row(name, ours, unit, aim, beside, peer, at_least)
    print("aim: " + " | ".join(cell for cell in row.cells() if cell), flush=True)
    path = os.environ.get(ROWS)
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")


def read(path: Path) -> list[Row]:
    """Return the rows of a file."""
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def table(rows: list[Row]) -> str:
    """Return the rows with their verdicts, as a table in Markdown."""
    head = ["what", "here", "beside", "ratio", "aim", "verdict"]
    cells = [row.cells() for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    lines = [head, ["-" * width for width in widths], *cells]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def as_json(rows: list[Row]) -> str:
    """Return the rows, their verdicts and the machine as JSON."""
    import torch

    machine = {
        "cores": os.cpu_count(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    shown = [{**asdict(row), "ratio": row.ratio, "met": row.is_met} for row in rows]
    return json.dumps({"machine": machine, "method": METHOD, "rows": shown}, indent=1) + "\n"


def main() -> None:
    """Print the table of a file of rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = read(options.rows)
    met = sum(row.is_met for row in rows)
    print(f"{table(rows)}\n{met} of {len(rows)} aims met. {METHOD}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(as_json(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
