"""A text file that lines are appended to, and from which a resumed run removes what it repeats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

__all__ = ["AppendedFile", "replace_file"]


class AppendedFile:
    """A file of lines.

    Parameters
    ----------
    path : str or Path
        The file, appended to.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def append(self, line: str) -> None:
        """Write a line, without its end, after those that are there."""
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(line + "\n")

    def size_bytes(self) -> int:
        """Return the size of the file."""
        return self.path.stat().st_size if self.path.exists() else 0

    def undo_after(self, size_bytes: int, is_kept: Callable[[bytes], bool]) -> None:
        """Remove the lines that were appended since the file had a size, but for some.

        Parameters
        ----------
        size_bytes : int
            What `size_bytes` returned.
        is_kept : callable
            Takes a line with its end. A line that a kill has cut off is removed.
        """
        if self.size_bytes() <= size_bytes:
            return
        content = self.path.read_bytes()
        kept, undone = content[:size_bytes], content[size_bytes:]
        lines = [line for line in undone.splitlines(keepends=True) if line.endswith(b"\n")]
        replace_file(self.path, kept + b"".join(line for line in lines if is_kept(line)))


def replace_file(path: Path, content: bytes) -> None:
    """Write a file under another name and rename it, so that a kill leaves the old or the new."""
    part = path.with_name(path.name + ".tmp")
    part.write_bytes(content)
    part.replace(path)
