"""Replacements in a text, and what a text keeps of SpeechBrain."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["NOT_HERE", "Edit", "Left", "MoveError", "Result", "apply_edits"]

NOT_HERE = "not part of Brain"


class MoveError(ValueError):
    """A file cannot be moved, and stays as it is."""


class Edit(NamedTuple):
    """A replacement: ``text`` takes the place of the characters from ``start`` to ``end``."""

    start: int
    end: int
    text: str


class Left(NamedTuple):
    """A name that stays SpeechBrain's: its line from 1, the name as written, and why."""

    line: int
    name: str
    why: str


@dataclass
class Result:
    """What becomes of one file.

    Attributes
    ----------
    text : str
        The new text; the old one where nothing is here.
    left : list of Left
        What stays on SpeechBrain.
    """

    text: str
    left: list[Left] = field(default_factory=list)


def apply_edits(text: str, edits: list[Edit]) -> str:
    """Return the text with the replacements made; they must not overlap."""
    parts, position = [], 0
    for start, end, new in sorted(edits):
        if start < position:
            raise MoveError(f"two replacements overlap at character {start}")
        parts += [text[position:start], new]
        position = end
    return "".join([*parts, text[position:]])
