"""How the command writes what it found: tables, ages, sizes, JSON and a progress bar."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any, final

from brain_ckpt.loading.contents import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_AGES_S = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
_BAR_FROM_BYTES = 2**28
_BAR_EVERY_S = 0.2
_BAR_WIDTH = 30
_LONGEST_CELL = 60


def write_line(text: str = "") -> None:
    """Write a line to the standard output."""
    sys.stdout.write(text + "\n")


def write_json(content: Any) -> None:
    """Write one JSON object to the standard output; what is no number in it is text."""
    write_line(json.dumps(plain(content), indent=1, ensure_ascii=False))


def write_table(header: Sequence[str], rows: Sequence[Sequence[Any]], right: str = "") -> None:
    """Write rows in aligned columns; of `right`, a column of "r" is aligned at its right end."""
    cells = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = right.ljust(len(header), "l")
    for row in cells:
        aligned = [
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, sides, strict=True)
        ]
        write_line("  ".join(aligned).rstrip())


def printable(value: Any) -> str:
    """Return a text without what could steer a terminal."""
    return "".join(char if char.isprintable() else " " for char in str(value))


def short(value: Any) -> str:
    """Return a text that is not too long for a table."""
    text = str(value)
    return text if len(text) <= _LONGEST_CELL else text[: _LONGEST_CELL - 1] + "…"


def number(value: Any) -> str:
    """Return a metric in few digits, and anything else as it is."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def moment(key: str, value: Any) -> str:
    """Return a value of meta, and a time as people read it."""
    if key == "unixtime" and isinstance(value, float):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value)) + f" ({value})"
    return number(value)


def size(count_bytes: float) -> str:
    """Return a size in decimal units, as in "1.2 GB"."""
    for unit in _UNITS[:-1]:
        if count_bytes < 1000:  # noqa: PLR2004 - decimal units
            return f"{count_bytes:.0f} B" if unit == "B" else f"{count_bytes:.1f} {unit}"
        count_bytes /= 1000
    return f"{count_bytes:.1f} {_UNITS[-1]}"


def age(seconds: float) -> str:
    """Return how long ago something was, in one unit."""
    for length_s, unit in _AGES_S:
        if seconds >= length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return "now" if seconds > -1 else "in the future"


@final
class ProgressBar:
    """Shows on a terminal how many bytes were read, when there are many.

    Parameters
    ----------
    total_bytes : int
        How many there are.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._read_bytes = 0
        self._last_s = 0.0
        self._is_shown = total_bytes >= _BAR_FROM_BYTES and sys.stderr.isatty()

    def __enter__(self) -> ProgressBar:
        """Show nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave an empty line for what follows."""
        if self._is_shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()

    def __call__(self, count_bytes: int) -> None:
        """Count bytes that were read."""
        self._read_bytes += count_bytes
        if self._is_shown and time.monotonic() - self._last_s >= _BAR_EVERY_S:
            self._last_s = time.monotonic()
            done = min(1.0, self._read_bytes / self._total_bytes)
            bar = ("#" * round(done * _BAR_WIDTH)).ljust(_BAR_WIDTH, ".")
            sys.stderr.write(f"\r[{bar}] {size(self._read_bytes)} of {size(self._total_bytes)}")
            sys.stderr.flush()
