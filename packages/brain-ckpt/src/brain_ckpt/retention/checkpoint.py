"""A saved checkpoint as a value: where it is, what its meta says, which files it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

Key = Callable[["Checkpoint"], Any]

_NO_METRICS = ("unixtime", "end-of-epoch", "brain_intra_epoch_ckpt", "step")


class _Fields(NamedTuple):
    path: Path
    meta: dict[str, Any]
    paramfiles: dict[str, Path]


class Checkpoint(_Fields):
    """One saved checkpoint; a named tuple of path, meta and paramfiles.

    Attributes
    ----------
    path : Path
        Its directory.
    meta : dict
        The content of CKPT.yaml: "unixtime", "end-of-epoch" and the meta given to the save.
    paramfiles : dict of str to Path
        The file of each recoverable, by the recoverable's name.
    commit_id : str, optional
        The identity of the save, by which a replaced checkpoint is recognized.
    size_bytes : int, optional
        The size of its files, for one in a mirror.
    """

    commit_id: str | None = None
    size_bytes: int | None = None

    def __new__(  # noqa: PYI034 - Self needs Python 3.11
        cls,
        path: Path,
        meta: dict[str, Any],
        paramfiles: dict[str, Path],
        *,
        commit_id: str | None = None,
        size_bytes: int | None = None,
    ) -> Checkpoint:
        """Make a checkpoint."""
        made = super().__new__(cls, path, meta, paramfiles)
        made.commit_id = commit_id
        made.size_bytes = size_bytes
        return made

    def __eq__(self, other: object) -> bool:
        """Compare all fields, also if meta holds tensors."""
        return isinstance(other, Checkpoint) and all(map(_is_equal, self, other))

    def __ne__(self, other: object) -> bool:
        """Return the opposite of ``==``."""
        return not self == other

    def __hash__(self) -> int:
        """Hash the path; meta and paramfiles are dicts."""
        return hash(self.path)


def _is_equal(left: Any, right: Any) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_is_equal(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_is_equal, left, right))
    if type(left) is type(right) and hasattr(left, "tolist"):  # a tensor or an array
        return bool(left.dtype == right.dtype and left.tolist() == right.tolist())
    return bool(left == right)


def metrics(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return meta without the keys that every checkpoint has."""
    return {key: value for key, value in checkpoint.meta.items() if key not in _NO_METRICS}


def ckpt_recency(ckpt: Checkpoint) -> float:
    """Return the time of a checkpoint in seconds since 1970; a key of importance."""
    return float(ckpt.meta["unixtime"])
