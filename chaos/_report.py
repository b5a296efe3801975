"""The report of a session: a table, a JSON file, and the reason of each failure."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from chaos._status import Phase

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from chaos._run import Kill, Outcome

__all__ = ["Session", "aligned"]

_MAX_FAILURES_SHOWN = 10
_MEANING = {
    Phase.START: "start-up: from the fork to the first batch",
    Phase.STEP: "training",
    Phase.SAVE: "inside a save",
    Phase.WRITE: "while a save is written in the background",
    Phase.VALID: "inside validation",
    Phase.BETWEEN: "between training, validation and the next epoch",
    Phase.END: "after the last epoch",
}


@dataclass
class Session:
    """All cases of a session.

    Attributes
    ----------
    seed : int
        Determines each case, together with the case's number.
    ranks : sequence of int
        The numbers of ranks that cases are drawn from.
    chain : int or None
        The number of kills in a chain.
    mutant : str or None
        The piece of state that was not restored.
    outcomes : list of Outcome
        In the order in which the cases ended.
    seconds : float
        The duration of the session.
    """

    seed: int
    ranks: Sequence[int]
    chain: int | None
    mutant: str | None
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def kills(self) -> list[Kill]:
        """The kills of all cases."""
        return [kill for outcome in self.outcomes for kill in outcome.kills]

    @property
    def failed(self) -> list[Outcome]:
        """The cases with a problem."""
        return [outcome for outcome in self.outcomes if outcome.problems]

    def rows(self) -> list[tuple[str, str]]:
        """Return each count with its label."""
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
            ("records repeated after a kill", f"{sum(o.redone for o in outcomes):,}"),
        ]
        rows += [
            (
                f"chain on {_ranks(outcome.config['ranks'])}",
                f"{len(outcome.kills)} kills in a row, "
                + ("FAILED" if outcome.problems else "bit-equal"),
            )
            for outcome in chains
        ]
        survivors_s = [kill.survivors_s for kill in kills if kill.killed < kill.ranks]
        if survivors_s:
            rows.append(("the other ranks ended by themselves within", f"{max(survivors_s):.1f} s"))
        return [*rows, ("seconds", f"{self.seconds:.0f}")]

    def table_of_kills(self) -> list[list[str]]:
        """Return the kills by phase and by number of ranks, with a header row."""
        kills = self.kills
        columns = sorted({kill.ranks for kill in kills})
        table = [["killed", *map(_ranks, columns), "all", "repeated: mean", "most"]]
        for phase, meaning in _MEANING.items():
            in_phase = [kill for kill in kills if kill.phase == phase.name]
            counts = Counter(kill.ranks for kill in in_phase)
            redone = [kill.redone for kill in in_phase] or [0]
            mean = f"{sum(redone) / len(redone):.1f}"
            numbers = [f"{counts[each]:,}" for each in columns]
            table.append([meaning, *numbers, f"{len(in_phase):,}", mean, str(max(redone))])
        one = Counter(kill.ranks for kill in kills if kill.killed < kill.ranks)
        total = Counter(kill.ranks for kill in kills)
        numbers = [f"{total[each]:,}" for each in columns]
        table.append(["all", *numbers, f"{len(kills):,}", "", ""])
        some = [f"{one[each]:,}" for each in columns]
        table.append(["of these, one rank of several", *some, f"{one.total():,}", "", ""])
        return table

    def text(self) -> str:
        """Return the report for a terminal."""
        parts = [aligned([["", ""], *map(list, self.rows())]), aligned(self.table_of_kills())]
        return "\n".join([*parts, *self.failures()])

    def markdown(self) -> str:
        """Return the report for a page."""
        title = f"# Killed {len(self.kills):,} times, seed {self.seed}"
        tables = [[["counted", ""], *map(list, self.rows())], self.table_of_kills()]
        return "\n\n".join([title, *map(_markdown, tables), *self.failures()]) + "\n"

    def failures(self) -> list[str]:
        """Return what differed first in the first failures, and the commands that repeat them."""
        return [
            f"\nFAILED: {'chain' if outcome.chained else 'case'} {outcome.number} "
            f"({_settings(outcome)})\n"
            + "\n".join(outcome.problems[:2])
            + f"\nagain: nox -s chaos -- {self._options(outcome)}"
            for outcome in sorted(self.failed, key=lambda o: o.number)[:_MAX_FAILURES_SHOWN]
        ]

    def _options(self, outcome: Outcome) -> str:
        selection = f"--case {outcome.number} --ranks {','.join(map(str, self.ranks))}"
        if outcome.chained:
            selection = f"--chain {self.chain} --ranks {outcome.number}"
        without = f" --without {self.mutant}" if self.mutant else ""
        return f"--seed {self.seed} {selection}{without}"

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


def aligned(table: Iterable[list[str]]) -> str:
    """Return a table as text, the first column aligned to the left and the others to the right."""
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
