"""A Python text and its syntax tree: where the nodes stand in the text."""

from __future__ import annotations

import ast
import re
from typing import TypeAlias

from brain_core.move.edits import MoveError

__all__ = ["Source"]

_Located: TypeAlias = "ast.stmt | ast.expr | ast.alias"


class Source:
    """A module's text and tree.

    Parameters
    ----------
    text : str
        The module, with any line ends.

    Raises
    ------
    MoveError
        If the text is not Python.
    """

    def __init__(self, text: str) -> None:
        try:
            self.tree = ast.parse(text)
        except (SyntaxError, ValueError) as error:
            raise MoveError(f"this is not Python: {error}") from error
        self.text = text
        self._lines = text.split("\n")
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line) + 1)

    def span(self, first: _Located, last: _Located | None = None) -> tuple[int, int]:
        """Return where a node starts and where it, or another one, ends, in characters."""
        end = last or first
        assert end.end_lineno is not None
        assert end.end_col_offset is not None
        start = self._offset(first.lineno, first.col_offset)
        return start, self._offset(end.end_lineno, end.end_col_offset)

    def _offset(self, line: int, byte: int) -> int:
        """Return a position in characters; the syntax tree counts bytes of UTF-8."""
        text = self._lines[line - 1]
        column = byte if text.isascii() else len(text.encode()[:byte].decode())
        return self._starts[line - 1] + column

    def surroundings(self, node: ast.stmt) -> tuple[str, str]:
        """Return what stands before and after a statement on its lines, with the line end."""
        start, end = self.span(node)
        after = self.text[end : self._starts[node.end_lineno or node.lineno]]
        return self.text[self._starts[node.lineno - 1] : start], after

    def spans_in_fstring(self, node: ast.JoinedStr, name: str) -> list[tuple[int, int]]:
        """Return where a dotted name stands in the text of an f-string, literal parts included."""
        start, end = self.span(node)
        pattern = re.compile(rf"(?<![\w.]){re.escape(name)}(?!\w)")
        return [found.span() for found in pattern.finditer(self.text, start, end)]
