"""What was measured, beside what, and whether its aim is met.

    python benchmarks/_verdict.py ROWS [--json FILE] [--docs]

A benchmark calls `report` for each figure that has an aim. `nox -s bench` collects the rows of all
of them in a file, and prints them with this program as one table. `--docs` puts the table into
docs/benchmarks.md, between the two comments that say so, and copies the picture of growth there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

ROWS = "BRAIN_BENCH_ROWS"
# Of the page: what stands between them is replaced.
BEGIN, END = "<!-- the table of `nox -s bench -- --docs` -->", "<!-- its end -->"
DOCS = Path(__file__).parent.parent / "docs"
PICTURE = Path("results/growth.png")
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
    program : str
        The file that measured it.
    """

    name: str
    ours: float
    unit: str
    aim: float
    beside: str = ""
    peer: float | None = None
    at_least: bool = False
    program: str = ""

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
            f"`{self.program}`",
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
    row = Row(name, ours, unit, aim, beside, peer, at_least, Path(sys.argv[0]).name)
    print("aim: " + " | ".join(cell for cell in row.cells()[:-1] if cell), flush=True)
    path = os.environ.get(ROWS)
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")


def read(path: Path) -> list[Row]:
    """Return the rows of a file."""
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def table(rows: list[Row]) -> str:
    """Return the rows with their verdicts, as a table in Markdown."""
    head = ["what", "here", "beside", "ratio", "aim", "verdict", "program"]
    cells = [row.cells() for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    lines = [head, ["-" * width for width in widths], *cells]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def machine() -> dict[str, object]:
    """Return what the figures were measured on."""
    import torch

    return {
        "cores": os.cpu_count(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def summary(rows: list[Row]) -> str:
    """Return how many aims are met, and how times were measured."""
    return f"{sum(row.is_met for row in rows)} of {len(rows)} aims met. {METHOD}"


def as_json(rows: list[Row]) -> str:
    """Return the rows, their verdicts and the machine as JSON."""
    shown = [{**asdict(row), "ratio": row.ratio, "met": row.is_met} for row in rows]
    return json.dumps({"machine": machine(), "method": METHOD, "rows": shown}, indent=1) + "\n"


def with_table(page: str, rows: list[Row]) -> str:
    """Return a page of the documentation with the table between its two comments.

    Raises
    ------
    ValueError
        If the page has not each of the two comments once.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"the page needs {BEGIN!r} and {END!r} once each; add the missing one")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    measured = ", ".join(f"{name}: {value}" for name, value in machine().items())
    head = f"Measured on {datetime.now(tz=timezone.utc):%Y-%m-%d}; {measured}.\n{summary(rows)}"
    return f"{before}{BEGIN}\n\n{head}\n\n{table(rows)}\n\n{END}{after}"


def main() -> None:
    """Print the table of a file of rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--json", type=Path, default=Path("results/bench.json"))
    parser.add_argument("--docs", action="store_true")
    options = parser.parse_args()
    rows = read(options.rows)
    print(f"{table(rows)}\n{summary(rows)}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(as_json(rows), encoding="utf-8")
    if options.docs:
        page = DOCS / "benchmarks.md"
        page.write_text(with_table(page.read_text(encoding="utf-8"), rows), encoding="utf-8")
        if PICTURE.exists():
            shutil.copy(PICTURE, DOCS / "pictures")


if __name__ == "__main__":
    main()
