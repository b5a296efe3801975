"""The three kinds of pass over data."""

from __future__ import annotations

from enum import Enum, auto

__all__ = ["Stage"]


class Stage(Enum):
    """Which pass a method of `Brain` is called in.

    `TRAIN` changes the model, `VALID` follows it within `Brain.fit`, `TEST` is `Brain.evaluate`.
    A member equals SpeechBrain's of the same name, and is the same key of a dict: SpeechBrain's
    models and losses that are given one compare it with their own.
    """

    TRAIN = auto()
    VALID = auto()
    TEST = auto()

    def __eq__(self, other: object) -> bool:
        """Whether ``other`` is this member, here or in SpeechBrain."""
        if self is other:
            return True
        kind = type(other)
        if isinstance(other, Enum) and kind.__module__ == "speechbrain.core":
            return kind.__name__ == "Stage" and other.name == self.name
        return NotImplemented

    __hash__ = Enum.__hash__  # of the name, in SpeechBrain too
