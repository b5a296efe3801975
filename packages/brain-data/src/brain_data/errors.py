"""What goes wrong between a manifest and a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class UnknownKeyError(KeyError):
    """A key that is not there; the message says which there are."""

    def __str__(self) -> str:
        # KeyError would print the repr of the whole sentence.
        return Exception.__str__(self)


class ManifestError(ValueError):
    """A manifest (JSON, CSV, Arrow, or a mapping in code) that cannot be a dataset."""


class ManifestKeyError(ManifestError, UnknownKeyError):
    """A manifest that lacks a column, a key or a replacement.

    SpeechBrain raises ``KeyError`` here, so code that catches that goes on working.
    """

    __str__ = UnknownKeyError.__str__


class DataItemError(RuntimeError):
    """A dynamic item that could not be computed: the message names item, function and row.

    The error of the function itself is the ``__cause__``; from a loader's worker it arrives as
    text, at the end of the message.
    """


class CircularDependencyError(ValueError):
    """Dynamic items that need each other in a circle."""


class PaddingError(ValueError):
    """Examples that cannot be one batch: the message names the key and the shapes."""


def nearest(name: object, names: Iterable[object]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest of ``names``, or nothing."""
    from difflib import get_close_matches

    near = get_close_matches(str(name), [str(other) for other in names], n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
