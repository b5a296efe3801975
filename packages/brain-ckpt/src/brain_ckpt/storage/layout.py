"""Names of the directories below a save directory, and which names may be given."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

PREFIX = "CKPT"
META_NAME = "CKPT.yaml"
PARAMFILE_EXT = ".ckpt"
RANKS_DIRECTORY = "ranks"
SHARDS_DIRECTORY = "shards"

TEMPORARY = ".tmp-"
OLD = ".old-"
TRASH = ".trash-"
NEW = ".new-"

# Lies in a directory that is written, or deleted, in its own place: where nothing is renamed.
UNFINISHED = ".unfinished"

# Room for ".trash-", the run and a number in the 255 bytes that file systems allow a name.
_NAME_LIMIT_BYTES = 180
_STAMP = "%Y-%m-%d+%H-%M-%S"


class Leftover(NamedTuple):
    """A directory that is not, or not any more, a checkpoint."""

    kind: str
    checkpoint: str
    run: str


def directory_name(name: str) -> str:
    """Return the name of the directory of a checkpoint with a name of the user's."""
    return f"{PREFIX}+{check_name(name, 'the name of a checkpoint')}"


def stamped_name(now_s: float, taken: Collection[str]) -> str:
    """Return a name made from the local time, as SpeechBrain makes it, that is not taken."""
    stamp = time.strftime(_STAMP, time.localtime(now_s))
    number = 0
    while (name := f"{PREFIX}+{stamp}+{number:02d}") in taken:
        number += 1
    return name


def check_name(name: object, what: str) -> str:
    """Return a name that can be part of a file's name.

    Raises
    ------
    ValueError
        If it cannot.
    """
    reason = ""
    if not isinstance(name, str) or not name:
        reason = "it is not a text"
    elif "/" in name or "\\" in name:
        reason = "it holds a path separator"
    elif not name.isprintable() or name.strip() != name:
        reason = "it holds what cannot be seen"
    elif name.startswith(".") or len(name.encode()) > _NAME_LIMIT_BYTES:
        reason = "it starts with a dot" if name.startswith(".") else "it is too long"
    if reason:
        raise ValueError(
            f"{what} is a plain name of up to {_NAME_LIMIT_BYTES} bytes, got {name!r}: {reason}; "
            f"use letters, digits, '_', '-', '+' and '.'"
        )
    assert isinstance(name, str)
    return name


def check_recoverable(name: object, others: Iterable[str]) -> None:
    """Check the name of a recoverable, which may be there already, but not in another case.

    Raises
    ------
    ValueError
        If it cannot be that of a file of its own.
    """
    plain = check_name(name, "the name of a recoverable")
    for other in others:
        if other != plain and other.casefold() == plain.casefold():
            raise ValueError(
                f"names of recoverables differ by more than case, since some file systems see no "
                f"difference, got {plain!r} beside {other!r}; rename one"
            )


def temporary_name(checkpoint: str, run: str, number: int) -> str:
    """Return the name of a directory that is being written."""
    return f"{TEMPORARY}{checkpoint}.{run}.{number}"


def old_name(checkpoint: str, run: str) -> str:
    """Return the name that a checkpoint has while it is replaced."""
    return f"{OLD}{checkpoint}.{run}"


def new_name(checkpoint: str, run: str) -> str:
    """Return the name of a directory whose content is to replace that of a checkpoint."""
    return f"{NEW}{checkpoint}.{run}"


def trash_name(checkpoint: str, run: str) -> str:
    """Return the name that a checkpoint has while it is deleted."""
    return f"{TRASH}{checkpoint}.{run}"


def parse_leftover(name: str) -> Leftover | None:
    """Return what a name of ours that starts with a dot says; None for any other name."""
    for kind, dots in ((TEMPORARY, 2), (OLD, 1), (TRASH, 1), (NEW, 1)):
        if name.startswith(kind + PREFIX):
            parts = name[len(kind) :].rsplit(".", dots)
            if len(parts) == dots + 1:
                return Leftover(kind, parts[0], parts[1])
    return None
