"""A training logger that writes a text file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from brain_core.loggers.appended_file import AppendedFile
from brain_core.loggers.base import MainProcessLogger, Stats
from brain_dist import main_process_only

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

__all__ = ["FileTrainLogger"]


class FileTrainLogger(MainProcessLogger):
    """Write one line per call to a text file.

    When a run resumes, the lines of training that it will repeat are removed: each epoch is in the
    file once. Lines with test figures stay.

    Parameters
    ----------
    save_file : str or Path
        The file, appended to.
    precision : int
        Decimals of a float: 2 gives ``1.35e-05``, and ``12.34`` between 1 and 100.
    """

    is_verbose = True

    def __init__(self, save_file: str | os.PathLike[str], precision: int = 2) -> None:
        self.save_file = save_file
        self.precision = precision

    def _write(self, meta: Stats, sets: Mapping[str, Stats]) -> str:
        parts = [self._stats_to_string(meta)]
        parts += [self._stats_to_string(stats, name) for name, stats in sets.items()]
        line = " - ".join(parts)
        AppendedFile(self.save_file).append(line)
        return line

    def state_dict(self) -> dict[str, int]:
        """Return the size of the file in bytes."""
        return {"size_bytes": AppendedFile(self.save_file).size_bytes()}

    @main_process_only
    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Remove the lines that were written after the checkpoint, but for tests."""
        AppendedFile(self.save_file).undo_after(
            state["size_bytes"], lambda line: b" - test " in line
        )

    def _stats_to_string(self, stats: Stats, dataset: str | None = None) -> str:
        prefix = f"{dataset} " if dataset else ""
        return ", ".join(f"{prefix}{key}: {self._number(value)}" for key, value in stats.items())

    def _number(self, value: Any) -> str:
        if not isinstance(value, float):
            return f"{value}"  # a tensor or NumPy number as the number that it holds
        style = "f" if 1.0 < value < 100.0 else "e"  # noqa: PLR2004  # SpeechBrain's range
        return f"{value:.{self.precision}{style}}"
