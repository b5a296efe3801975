"""A saved checkpoint as a value: where it is, what its meta says, which files it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

Key = Callable[["Checkpoint"], Any]


class Checkpoint(NamedTuple):
    """One saved checkpoint.

    Parameters
    ----------
    path : Path
        Its directory.
    meta : dict
        The content of CKPT.yaml: "unixtime", "end-of-epoch" and the meta given to the save.
    paramfiles : dict of str to Path
        The file of each recoverable, by the recoverable's name.
    """

    path: Path
    meta: dict[str, Any]
    paramfiles: dict[str, Path]

    def __hash__(self) -> int:
        """Hash the path; meta and paramfiles are dicts."""
        return hash(self.path)


def ckpt_recency(ckpt: Checkpoint) -> float:
    """Return the time of a checkpoint in seconds since 1970; a key of importance."""
    return float(ckpt.meta["unixtime"])
