"""A training logger that writes one JSON object per line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from brain_core.loggers.appended_file import AppendedFile
from brain_core.loggers.base import MainProcessLogger, Stats, plain_number
from brain_dist import main_process_only

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

__all__ = ["JSONLinesLogger"]


class JSONLinesLogger(MainProcessLogger):
    """Write one JSON object per call, as ``{"epoch": 1, "train": {"loss": 0.5}}``.

    When a run resumes, the lines of training that it will repeat are removed: each epoch is in the
    file once. Lines with test figures stay. NaN and infinities are written as in Python's json.

    Parameters
    ----------
    save_file : str or Path
        The file, appended to.
    """

    def __init__(self, save_file: str | os.PathLike[str]) -> None:
        self.save_file = save_file

    def _write(self, meta: Stats, sets: Mapping[str, Stats]) -> str:
        row = {name: plain_number(value) for name, value in meta.items()}
        for name, stats in sets.items():
            row[name] = {stat: plain_number(value) for stat, value in stats.items()}
        line = json.dumps(row)
        AppendedFile(self.save_file).append(line)
        return line

    def state_dict(self) -> dict[str, int]:
        """Return the size of the file in bytes."""
        return {"size_bytes": AppendedFile(self.save_file).size_bytes()}

    @main_process_only
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remove the lines that were written after the checkpoint, but for tests."""
        AppendedFile(self.save_file).undo_after(
            state["size_bytes"], lambda line: "test" in json.loads(line)
        )
