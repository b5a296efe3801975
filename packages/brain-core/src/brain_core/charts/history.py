"""The history of a run: what a `Report` has written, a JSON object per line."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["HISTORY", "History", "Point", "read_history"]

HISTORY = "history.jsonl"
Point = tuple[float, float]
_NO_FIGURES = {"kind", "time", "step", "epoch", "stage"}


@dataclass
class History:
    """The rows of a run by kind.

    Attributes
    ----------
    name : str
        The run's name.
    starts, steps, stages, checkpoints : list of dict
        The rows of each kind: a start or restart, some steps, the end of a pass, a checkpoint.
    """

    name: str
    starts: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)

    @property
    def restarts(self) -> list[dict[str, Any]]:
        """The starts that continued a run."""
        return [row for row in self.starts if row.get("is_resumed")]

    def figures(self) -> dict[str, dict[str, list[Point]]]:
        """Return the curves by figure, then by source: ``steps``, ``TRAIN``, ``VALID``.

        A point is an optimizer step and a value that is finite.
        """
        found: dict[str, dict[str, list[Point]]] = {}
        for source, rows in (("steps", self.steps), *self._stages_by_name()):
            for row in rows:
                for name, value in _finite(row):
                    found.setdefault(name, {}).setdefault(source, []).append((row["step"], value))
        return found

    def _stages_by_name(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        for stage in dict.fromkeys(row["stage"] for row in self.stages):
            yield stage, [row for row in self.stages if row["stage"] == stage]


def read_history(folder: str | os.PathLike[str], name: str | None = None) -> History:
    """Read the history of an experiment directory.

    Parameters
    ----------
    folder : str or Path
        The directory, or its history file.
    name : str, optional
        The run's name; by default that of the directory.

    Raises
    ------
    FileNotFoundError
        If there is no history.
    """
    path = Path(folder)
    path = path / HISTORY if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(
            f"A report needs {path}, which is not there. It is written by a Brain with "
            "callbacks=[Report(output_folder)]."
        )
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # without one that a kill cut off
    return history_of((json.loads(line) for line in lines), name or path.resolve().parent.name)


def history_of(rows: Iterable[Mapping[str, Any]], name: str) -> History:
    """Sort rows by kind."""
    history = History(name)
    kinds = {
        "start": history.starts,
        "steps": history.steps,
        "stage": history.stages,
        "checkpoint": history.checkpoints,
    }
    for row in rows:
        if row.get("kind") in kinds:
            kinds[row["kind"]].append(dict(row))
    return history


def _finite(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name not in _NO_FIGURES and is_number and math.isfinite(value):
            yield name, float(value)
