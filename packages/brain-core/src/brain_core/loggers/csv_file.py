"""A training logger that writes a table."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_core.loggers.appended_file import AppendedFile, replace_file
from brain_core.loggers.base import MainProcessLogger, Stats, plain_number
from brain_dist import main_process_only

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

__all__ = ["CSVLogger"]

Row = dict[str, str]


class CSVLogger(MainProcessLogger):
    """Write one row per call to a CSV file, with a column per figure: ``epoch``, ``train loss``.

    A figure that comes later gets a column of its own, which is empty in the rows before. When a
    run resumes, the rows of training that it will repeat are removed: each epoch is in the file
    once. Rows with test figures stay.

    Parameters
    ----------
    save_file : str or Path
        The file; rows are appended to those that it has.
    """

    def __init__(self, save_file: str | os.PathLike[str]) -> None:
        self.save_file = save_file

    def _write(self, meta: Stats, sets: Mapping[str, Stats]) -> Row:
        row = {name: str(plain_number(value)) for name, value in meta.items()}
        for name, stats in sets.items():
            row |= {f"{name} {stat}": str(plain_number(value)) for stat, value in stats.items()}
        columns, rows = self._read()
        if columns and set(row) <= set(columns):
            AppendedFile(self.save_file).append(_to_text(columns, [row]))
        else:
            self._rewrite(list(dict.fromkeys([*columns, *row])), [*rows, row])
        return row

    def state_dict(self) -> dict[str, int]:
        """Return the number of rows."""
        return {"rows": len(self._read()[1])}

    @main_process_only
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remove the rows that were written after the checkpoint, but for tests."""
        columns, rows = self._read()
        kept = [
            row
            for number, row in enumerate(rows)
            if number < state["rows"]
            or any(value and name.startswith("test ") for name, value in row.items())
        ]
        if columns:
            self._rewrite(columns, kept)

    def _read(self) -> tuple[list[str], list[Row]]:
        """Return the columns and the rows; without one that a kill has cut off."""
        path = Path(self.save_file)
        text = path.read_bytes().decode("utf-8") if path.exists() else ""
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
        return list(reader.fieldnames or ()), list(reader)

    def _rewrite(self, columns: Iterable[str], rows: Iterable[Row]) -> None:
        columns = list(columns)
        text = _to_text(columns, [dict(zip(columns, columns, strict=True)), *rows])
        replace_file(Path(self.save_file), f"{text}\n".encode())


def _to_text(columns: list[str], rows: Iterable[Row]) -> str:
    """Return rows as text, without the end of the last line."""
    text = io.StringIO()
    csv.DictWriter(text, columns, restval="", lineterminator="\n").writerows(rows)
    return text.getvalue().removesuffix("\n")
