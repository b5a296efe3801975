"""Splits ``from speechbrain... import ...`` by package, and keeps its layout and comments."""

from __future__ import annotations

import re

from brain_core.move.edits import MoveError

__all__ = ["FromImport"]

_GAP = r"(?:[ \t]|\\\r?\n)"
_HEAD = re.compile(rf"(from{_GAP}+)([\w.]+)({_GAP}+import)({_GAP}*\(|)(.*)", re.DOTALL)
_COMMENT = re.compile(r"[ \t]*(?:#[^\r\n]*)?(?=\r?\n)")


class FromImport:
    """The text of a ``from ... import ...`` statement, cut into one piece for each name.

    Parameters
    ----------
    text : str
        The statement.
    names : list of tuple of int
        Start and end of each imported name, with its ``as``, in the text.

    Raises
    ------
    MoveError
        If the statement is written in a way that is not understood.

    Examples
    --------
    >>> statement = FromImport("from a import b, c", [(14, 15), (17, 18)])
    >>> statement.only([1], "d")
    'from d import c'
    """

    def __init__(self, text: str, names: list[tuple[int, int]]) -> None:
        head = _HEAD.fullmatch(text[: names[0][0]])
        if head is None:
            raise MoveError(f"this import is not understood: {text!r}")
        self._newline = "\r\n" if "\r\n" in text else "\n"
        self._before, self._module, self._between, self._open, lead = head.groups()
        self._pieces: list[tuple[str, str, str, str]] = []  # before, name, comma, after
        ends = [start for start, _ in names[1:]] + [len(text) - len(")" * bool(self._open))]
        for (start, end), stop in zip(names, ends, strict=True):
            comma, after, rest = self._cut(text[end:stop])
            self._pieces.append((lead, text[start:end], comma, after))
            lead = rest
        self._after = lead + ")" * bool(self._open)

    def _cut(self, gap: str) -> tuple[str, str, str]:
        """Split what follows a name: up to the comma, to the end of its line, and the rest."""
        position = 0
        while position < len(gap) and gap[position] != ",":
            comment = _COMMENT.match(gap, position)
            position = comment.end() + 1 if comment else position + 1
        before, after = gap[: position + 1], gap[position + 1 :]
        if position >= len(gap):
            before, after = "", gap
        comment = _COMMENT.match(after) if self._open else None
        end = comment.end() if comment else 0
        return before, after[:end], after[end:]

    def only(self, positions: list[int], module: str | None = None) -> str:
        """Return the statement with some of its names, from another module if one is given."""
        pieces = [self._pieces[position] for position in positions]
        if not self._pieces[-1][2]:  # no comma after the last name
            lead, name, comma, after = pieces[-1]
            pieces[-1] = lead, name, comma.removesuffix(","), after
        if "#" in pieces[-1][3] and not self._after.lstrip(" \t").startswith(("\r", "\n")):
            lead, name, comma, after = pieces[-1]
            pieces[-1] = lead, name, comma, after + self._newline  # the comment ends there
        head = self._before + (module or self._module) + self._between + self._open
        return head + "".join("".join(piece) for piece in pieces) + self._after
