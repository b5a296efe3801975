"""The three kinds of pass over data."""

from __future__ import annotations

from enum import Enum, auto

__all__ = ["Stage"]


class Stage(Enum):
    """Which pass a method of `Brain` is called in.

    `TRAIN` changes the model, `VALID` follows it within `Brain.fit`, `TEST` is `Brain.evaluate`.
    """

    TRAIN = auto()
    VALID = auto()
    TEST = auto()
