"""The files of a session: in a small one each process says how far it is."""

from __future__ import annotations

import gc
import json
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "LEAKS",
    "READER_STATUS_FILE",
    "SAVE_FOLDER",
    "TRAINING_STATUS_FILE",
    "StatusFile",
    "read_status",
]

# In the folder of a session.
SAVE_FOLDER = "save"
TRAINING_STATUS_FILE, READER_STATUS_FILE = "training.json", "reader.json"
LEAKS = ("none", "tensors", "files")


class StatusFile:
    """Writes counts of this process at most once an interval.

    Parameters
    ----------
    path : Path
        The file, which is replaced each time.
    interval_s : float
        The shortest time between two.
    """

    def __init__(self, path: Path, interval_s: float) -> None:
        self._path, self._interval_s = path, interval_s
        self._next_s = 0.0
        self._parent = os.getppid()
        self.counts: dict[str, int] = {}

    def count(self, name: str) -> None:
        """Count an event, and write all counts if it is time.

        Raises
        ------
        SystemExit
            If the command that started this process was killed.
        """
        self.counts[name] = self.counts.get(name, 0) + 1
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + self._interval_s
        if os.getppid() != self._parent:
            raise SystemExit("the command was killed")
        gc.collect()  # otherwise garbage that is about to be collected is counted, too
        content = {"time_s": time.monotonic(), "objects": len(gc.get_objects()), **self.counts}
        written = self._path.with_suffix(".new")
        written.write_text(json.dumps(content), encoding="utf-8")
        os.replace(written, self._path)


def read_status(path: Path) -> dict[str, float]:
    """Return the counts with "time_s" and "objects"; nothing before the first are written."""
    try:
        content: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return content
