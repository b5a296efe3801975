"""What a session found: a table, a file for programs, and the reason of each failure."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from chaos._board import Phase

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from chaos._run import Kill, Outcome

__all__ = ["Session"]

_MOST_TOLD = 10
_MEANING = {
    Phase.START: "start-up: from the fork to the first batch",
    Phase.STEP: "training",
    Phase.SAVE: "inside a save",
    Phase.WRITE: "while a save is written in the background",
    Phase.VALID: "inside validation",
    Phase.BORDER: "between training, validation and the next epoch",
    Phase.END: "after the last epoch",
}


@dataclass
class Session:
    """All cases of a session.

    Attributes
    ----------
    seed : int
        With a case's number it gives the case again.
    ranks : sequence of int
        What cases are drawn from.
    chain : int or None
        How often one run was to be killed.
    mutant : str or None
        What was left out on purpose.
    outcomes : list of Outcome
        In the order in which they ended.
    seconds : float
        How long it took.
    """

    seed: int
    ranks: Sequence[int]
    chain: int | None
    mutant: str | None
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def kills(self) -> list[Kill]:
        """Every kill."""
        return [kill for outcome in self.outcomes for kill in outcome.kills]

    @property
    def failed(self) -> list[Outcome]:
        """The cases with a problem."""
        return [outcome for outcome in self.outcomes if outcome.problems]

    def rows(self) -> list[tuple[str, str]]:
        """Return what is counted, and the counts."""
        kills, outcomes = self.kills, self.outcomes
        chains = [outcome for outcome in outcomes if outcome.chained]
        equal = len(outcomes) - len(self.failed)
        rows = [
            ("kills", f"{len(kills):,}"),
            ("runs bit-equal to the undisturbed one", f"{equal:,} of {len(outcomes):,}"),
            ("samples lost", f"{sum(o.lost for o in outcomes):,}"),
            ("samples repeated", f"{sum(o.repeated for o in outcomes):,}"),
            ("starts that could not resume", f"{sum(o.no_resume for o in outcomes):,}"),
            ("starts that hung", f"{sum(o.hung for o in outcomes):,}"),
            ("records compared", f"{sum(o.compared for o in outcomes):,}"),
            ("records done again after a kill", f"{sum(o.redone for o in outcomes):,}"),
        ]
        rows += [
            (
                f"chain on {_ranks(outcome.config['ranks'])}",
                f"{len(outcome.kills)} kills in a row, "
                + ("FAILED" if outcome.problems else "bit-equal"),
            )
            for outcome in chains
        ]
        alone = [kill.alone_s for kill in kills if kill.hit < kill.ranks]
        if alone:
            rows.append(("the other ranks ended by themselves within", f"{max(alone):.1f} s"))
        return [*rows, ("seconds", f"{self.seconds:.0f}")]

    def table_of_kills(self) -> list[list[str]]:
        """Return the kills by where they hit, for each number of ranks, with a head."""
        kills = self.kills
        columns = sorted({kill.ranks for kill in kills})
        table = [["killed", *map(_ranks, columns), "all", "redone: mean", "most"]]
        for phase, meaning in _MEANING.items():
            here = [kill for kill in kills if kill.phase == phase.name]
            counts = Counter(kill.ranks for kill in here)
            redone = [kill.redone for kill in here] or [0]
            mean = f"{sum(redone) / len(redone):.1f}"
            numbers = [f"{counts[each]:,}" for each in columns]
            table.append([meaning, *numbers, f"{len(here):,}", mean, str(max(redone))])
        one = Counter(kill.ranks for kill in kills if kill.hit < kill.ranks)
        total = Counter(kill.ranks for kill in kills)
        numbers = [f"{total[each]:,}" for each in columns]
        table.append(["all", *numbers, f"{len(kills):,}", "", ""])
        some = [f"{one[each]:,}" for each in columns]
        table.append(["of them one rank of several", *some, f"{one.total():,}", "", ""])
        return table

    def text(self) -> str:
        """Return the report for a terminal."""
        parts = [_aligned([["", ""], *map(list, self.rows())]), _aligned(self.table_of_kills())]
        return "\n".join([*parts, *self.failures()])

    def markdown(self) -> str:
        """Return the report for a page."""
        title = f"# Killed {len(self.kills):,} times, seed {self.seed}"
        tables = [[["counted", ""], *map(list, self.rows())], self.table_of_kills()]
        return "\n\n".join([title, *map(_markdown, tables), *self.failures()]) + "\n"

    def failures(self) -> list[str]:
        """Say of the first failures what differed first, and how to see it again."""
        return [
            f"\nFAILED: {'chain' if outcome.chained else 'case'} {outcome.number} "
            f"({_settings(outcome)})\n"
            + "\n".join(outcome.problems[:2])
            + f"\nagain: nox -s chaos -- {self._again(outcome)}"
            for outcome in sorted(self.failed, key=lambda o: o.number)[:_MOST_TOLD]
        ]

    def _again(self, outcome: Outcome) -> str:
        which = f"--case {outcome.number} --ranks {','.join(map(str, self.ranks))}"
        if outcome.chained:
            which = f"--chain {self.chain} --ranks {outcome.number}"
        without = f" --without {self.mutant}" if self.mutant else ""
        return f"--seed {self.seed} {which}{without}"

    def write(self, folder: Path) -> None:
        """Write report.json and table.md."""
        content = {
            "seed": self.seed,
            "without": self.mutant,
            "counts": dict(self.rows()),
            "cases": [asdict(outcome) for outcome in self.outcomes],
        }
        (folder / "report.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        (folder / "table.md").write_text(self.markdown(), encoding="utf-8")


def _settings(outcome: Outcome) -> str:
    return ", ".join(f"{name} {value}" for name, value in outcome.config.items())


def _ranks(number: int) -> str:
    return f"{number} rank" + ("s" if number > 1 else "")


def _aligned(table: Iterable[list[str]]) -> str:
    rows = list(table)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, ""])


def _markdown(table: list[list[str]]) -> str:
    head, *rows = table
    lines = ["|".join(["", *head, ""]), "|".join(["", "---", *["--:"] * (len(head) - 1), ""])]
    lines += ["|".join(["", *row, ""]) for row in rows]
    return "\n".join(lines)
