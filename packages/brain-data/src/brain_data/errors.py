"""The errors of this package."""

from __future__ import annotations

import os
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class UnknownKeyError(KeyError):
    """Raised for a key that does not exist; the message lists those that do."""

    def __str__(self) -> str:
        """Return the message; KeyError would return its repr."""
        return Exception.__str__(self)


class ManifestError(ValueError):
    """Raised for a manifest (JSON, CSV, Arrow, or a mapping in code) that is not a dataset."""


class ManifestKeyError(ManifestError, UnknownKeyError):
    """Raised for a manifest that lacks a column, a key or a replacement.

    SpeechBrain raises ``KeyError`` here, so code that catches ``KeyError`` still works.
    """

    __str__ = UnknownKeyError.__str__


class DataItemError(RuntimeError):
    """Raised if a dynamic item cannot be computed; the message names item, function and row.

    The error of the function is the ``__cause__``; from a loader's worker it arrives as text, at
    the end of the message.
    """


class CircularDependencyError(ValueError):
    """Raised for dynamic items that depend on each other in a cycle."""


class PaddingError(ValueError):
    """Raised if rows cannot be one batch; the message names the key and the shapes."""


class ResumeError(ValueError):
    """Raised before the first batch if the batches that remain of a pass cannot be found again."""


def nearest(name: object, names: Iterable[object]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest of ``names``, or an empty string."""
    near = get_close_matches(str(name), [str(other) for other in names], n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def check_file(path: str | os.PathLike[str], kind: str) -> None:
    """Raise FileNotFoundError, with the full path and the nearest name, if there is no file."""
    if os.path.exists(path):
        return
    folder, name = os.path.split(os.path.abspath(path))
    names = os.listdir(folder) if os.path.isdir(folder) else []
    full = os.path.join(folder, name)
    raise FileNotFoundError(
        f"A {kind} must exist, got {os.fspath(path)!r}, which is {full}{nearest(name, names)}: "
        "correct the path; a relative one begins at the directory in which the script was started"
    )
