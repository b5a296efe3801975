"""The names of files and directories below a save directory, and which names are valid."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFIX = "CKPT"
META_NAME = "CKPT.yaml"
PARAMFILE_EXT = ".ckpt"
RANKS_DIRECTORY = "ranks"
SHARDS_DIRECTORY = "shards"
SHARDS_INDEX = ".metadata"
# The names of the parameters in optimizers' groups, beside the states that SpeechBrain knows.
PARAMETER_NAMES = "parameter_names.json"

# The folder of checkpoints that a run has gone back behind.
SET_ASIDE = "set_aside"

TEMPORARY = ".tmp-"
OLD = ".old-"
TRASH = ".trash-"
NEW = ".new-"
# What was downloaded of a checkpoint; kept for the next attempt, and no leftover of a save.
PULL = ".pull-"

# Marks a directory that is written or deleted in place, where directories are not renamed.
UNFINISHED = ".unfinished"

# File systems allow names of 255 bytes; this leaves room for ".trash-", the run id and a number.
_NAME_LIMIT_BYTES = 180
_STAMP = "%Y-%m-%d+%H-%M-%S"


# Files that file systems, desktops and editors leave in any directory.
_FOREIGN = re.compile(r"\.nfs.*|\.DS_Store|\._.*|Thumbs\.db|\..*\.sw[a-z]|.*~")


class Leftover(NamedTuple):
    """A directory that is not yet, or no longer, a checkpoint: its kind, checkpoint and run."""

    kind: str
    checkpoint: str
    run_id: str


def directory_name(name: str) -> str:
    """Return the name of the directory of a checkpoint that the user named."""
    return f"{PREFIX}+{check_name(name, 'the name of a checkpoint')}"


def name_from_time(time_s: float, used_names: Iterable[str]) -> str:
    """Return a name made from the local time, as SpeechBrain makes it.

    Its number is above those of all used names of the same second, also if these have gaps left by
    deleted checkpoints: a name is not used twice.
    """
    stem = f"{PREFIX}+{time.strftime(_STAMP, time.localtime(time_s))}+"
    numbers = [name.removeprefix(stem) for name in used_names if name.startswith(stem)]
    number = max((int(text) + 1 for text in numbers if text.isdecimal()), default=0)
    return f"{stem}{number:02d}"


def check_directory(directory: str | Path) -> Path:
    """Return the directory of checkpoints as a path.

    Raises
    ------
    NotADirectoryError
        If it is a file.
    """
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(
            f"checkpoints_dir must be a directory, got {str(path)!r}, which is a file; name another"
        )
    return path


def check_name(name: object, what: str) -> str:
    """Return a name if it can be part of a file name.

    Raises
    ------
    ValueError
        If it cannot be.
    """
    reason = ""
    if not isinstance(name, str) or not name:
        reason = "it is not a string"
    elif "/" in name or "\\" in name:
        reason = "it has a path separator"
    elif not name.isprintable() or name.strip() != name:
        reason = "it has invisible characters"
    elif name.startswith(".") or len(name.encode()) > _NAME_LIMIT_BYTES:
        reason = "it starts with a dot" if name.startswith(".") else "it is too long"
    if reason:
        raise ValueError(
            f"{what} must be a plain name of up to {_NAME_LIMIT_BYTES} bytes, got {name!r}: "
            f"{reason}; use letters, digits, '_', '-', '+' and '.'"
        )
    assert isinstance(name, str)
    return name


def check_recoverable(name: object, others: Iterable[str]) -> None:
    """Check the name of a recoverable against those of the others.

    Raises
    ------
    ValueError
        If it is not a valid file name, or differs from another name only by case.
    """
    plain = check_name(name, "the name of a recoverable")
    for other in others:
        if other != plain and other.casefold() == plain.casefold():
            raise ValueError(
                f"names of recoverables must differ by more than case, because some file systems "
                f"ignore case, got {plain!r} beside {other!r}; rename one"
            )


def is_foreign(name: str) -> bool:
    """Return whether a file, by its name, is one that no saver writes.

    Examples
    --------
    >>> is_foreign("shards/.nfs000000012"), is_foreign("model.ckpt")
    (True, False)
    """
    return _FOREIGN.fullmatch(name.rpartition("/")[2]) is not None


def temporary_name(checkpoint: str, run_id: str, number: int) -> str:
    """Return the name of a directory that is being written."""
    return f"{TEMPORARY}{checkpoint}.{run_id}.{number}"


def old_name(checkpoint: str, run_id: str) -> str:
    """Return the name of a checkpoint while it is replaced."""
    return f"{OLD}{checkpoint}.{run_id}"


def new_name(checkpoint: str, run_id: str) -> str:
    """Return the name of a directory that will replace a checkpoint."""
    return f"{NEW}{checkpoint}.{run_id}"


def trash_name(checkpoint: str, run_id: str) -> str:
    """Return the name of a checkpoint while it is deleted."""
    return f"{TRASH}{checkpoint}.{run_id}"


def parse_leftover(name: str) -> Leftover | None:
    """Return what a temporary name says; None for any other name."""
    if not name.startswith("."):
        return None
    for kind, dots in ((TEMPORARY, 2), (OLD, 1), (TRASH, 1), (NEW, 1)):
        if name.startswith(kind + PREFIX):
            parts = name[len(kind) :].rsplit(".", dots)
            if len(parts) == dots + 1:
                return Leftover(kind, parts[0], parts[1])
    return None
