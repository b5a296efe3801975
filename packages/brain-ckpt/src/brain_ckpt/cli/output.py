"""Write the output of the command: tables, ages, sizes, JSON and a progress bar."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_AGES_S = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
_BAR_MIN_BYTES = 2**28
_BAR_INTERVAL_S = 0.2
_BAR_WIDTH = 30
_MAX_CELL_LENGTH = 60


def write_line(text: str = "") -> None:
    """Write a line to the standard output."""
    sys.stdout.write(text + "\n")


def write_json(content: Any) -> None:
    """Write one JSON object to the standard output."""
    write_line(json.dumps(to_json_value(content), indent=1, ensure_ascii=False))


def write_table(header: Sequence[str], rows: Sequence[Sequence[Any]], alignment: str = "") -> None:
    """Write rows in columns; an "r" in `alignment` aligns a column to the right."""
    cells = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = alignment.ljust(len(header), "l")
    for row in cells:
        aligned = [
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, sides, strict=True)
        ]
        write_line("  ".join(aligned).rstrip())


def to_json_value(value: Any) -> Any:
    """Return a value that JSON can hold; NaN and infinities become the strings "nan" and "inf"."""
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if hasattr(value, "tolist"):  # a tensor or array
        return to_json_value(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): to_json_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_value(inner) for inner in value]
    return str(value)


def printable(value: Any) -> str:
    """Return a text without control characters."""
    return "".join(char if char.isprintable() else " " for char in str(value))


def shorten(value: Any) -> str:
    """Return a text that fits into a table."""
    text = str(value)
    return text if len(text) <= _MAX_CELL_LENGTH else text[: _MAX_CELL_LENGTH - 1] + "…"


def format_number(value: Any) -> str:
    """Return a float with few digits, and anything else as it is."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def format_meta_value(key: str, value: Any) -> str:
    """Return a value of meta; a time is shown as date and seconds."""
    if key == "unixtime" and isinstance(value, float):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value)) + f" ({value})"
    return format_number(value)


def format_size(size_bytes: float) -> str:
    """Return a size in decimal units, as in "1.2 GB"."""
    for unit in _UNITS[:-1]:
        if size_bytes < 1000:  # noqa: PLR2004 - decimal units
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} {_UNITS[-1]}"


def format_age(seconds: float) -> str:
    """Return an age in one unit, as in "5 min"."""
    for length_s, unit in _AGES_S:
        if seconds >= length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return "now" if seconds > -1 else "in the future"


@final
class ProgressBar:
    """Shows on a terminal how many of many bytes were read.

    Parameters
    ----------
    total_bytes : int
        The number of bytes to read.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._read_bytes = 0
        self._last_s = 0.0
        self._is_shown = total_bytes >= _BAR_MIN_BYTES and sys.stderr.isatty()

    def __enter__(self) -> ProgressBar:
        """Return itself; nothing is shown yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Clear the line."""
        if self._is_shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()

    def __call__(self, count_bytes: int) -> None:
        """Count bytes that were read."""
        self._read_bytes += count_bytes
        if self._is_shown and time.monotonic() - self._last_s >= _BAR_INTERVAL_S:
            self._last_s = time.monotonic()
            done = min(1.0, self._read_bytes / self._total_bytes)
            bar = ("#" * round(done * _BAR_WIDTH)).ljust(_BAR_WIDTH, ".")
            sys.stderr.write(
                f"\r[{bar}] {format_size(self._read_bytes)} of {format_size(self._total_bytes)}"
            )
            sys.stderr.flush()
