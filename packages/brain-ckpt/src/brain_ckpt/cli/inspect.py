"""Find checkpoints by path, and describe them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from brain_ckpt.cli.file_checks import file_size
from brain_ckpt.errors import CheckpointError, CheckpointGoneError, UsageError
from brain_ckpt.recoverables.serialization import read_state
from brain_ckpt.storage import filesystem
from brain_ckpt.storage.layout import META_NAME, PARAMFILE_EXT, parse_leftover
from brain_ckpt.storage.listing import (
    list_published,
    looks_like_checkpoint,
    read_checkpoint,
)
from brain_ckpt.storage.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from brain_ckpt.retention.checkpoint import Checkpoint
    from brain_ckpt.storage.opened import OpenedCheckpoint


@dataclass(frozen=True)
class DirectoryContents:
    """The content of a directory of checkpoints.

    Parameters
    ----------
    checkpoints : list of Checkpoint
        From the newest to the oldest.
    unreadable : dict of Path to str
        Checkpoints that cannot be listed, with the reason.
    unfinished : list of str
        The names of directories that a pending or killed save has left.
    """

    checkpoints: list[Checkpoint]
    unreadable: dict[Path, str]
    unfinished: list[str]


def read_directory(directory: str | Path) -> DirectoryContents:
    """List a directory of checkpoints; the directory of a checkpoint gives that one.

    Raises
    ------
    UsageError
        If it does not exist.
    """
    path = Path(directory)
    if not path.is_dir():
        raise UsageError(
            f"DIR must be a directory of checkpoints, got {os.fspath(directory)!r}, which is "
            f"{'a file' if path.exists() else 'missing'}; name the directory that holds the "
            f"CKPT+... directories"
        )
    if looks_like_checkpoint(path):
        try:
            return DirectoryContents([read_checkpoint(path)], {}, [])
        except CheckpointGoneError:
            raise
        except (CheckpointError, OSError) as error:
            return DirectoryContents([], {path: str(error)}, [])
    listing = list_published(path)
    unfinished = [name for name in filesystem.names(path) if parse_leftover(name)]
    return DirectoryContents(listing.checkpoints[::-1], listing.unreadable, unfinished)


def checkpoint_path(path: str | Path) -> Path:
    """Return the path of one checkpoint.

    Raises
    ------
    UsageError
        If the path is not that of a checkpoint.
    """
    directory = Path(path)
    if directory.is_dir() and looks_like_checkpoint(directory):
        return directory
    if not directory.is_dir():
        got = "a file" if directory.exists() else "missing"
        advice = "name a CKPT+... directory; brain-ckpt ls DIR lists them"
    else:
        listed = list_published(directory).checkpoints
        got = (
            f"a directory of {len(listed)} checkpoints"
            if listed
            else f"a directory without {META_NAME}"
        )
        advice = f"name one, such as {listed[-1].path}" if listed else "name a CKPT+... directory"
    raise UsageError(
        f"CKPT must be one checkpoint, got {os.fspath(path)!r}, which is {got}; {advice}"
    )


def find_incomplete(checkpoints: Sequence[Checkpoint]) -> dict[Path, str]:
    """Find checkpoints that lack files of older ones, as a killed run of SpeechBrain leaves.

    Parameters
    ----------
    checkpoints : sequence of Checkpoint
        The newest first.

    Returns
    -------
    dict of Path to str
        The missing files of each incomplete checkpoint; only those without a manifest.
    """
    known: set[str] = set()
    incomplete = {}
    for one in reversed(checkpoints):
        missing = known - one.paramfiles.keys()
        if missing and one.commit_id is None and not (one.path / MANIFEST_NAME).exists():
            names = ", ".join(sorted(name + PARAMFILE_EXT for name in missing))
            incomplete[one.path] = f"{names} is missing, which older checkpoints have"
        known |= one.paramfiles.keys()
    return incomplete


def total_bytes(path: Path) -> int:
    """Return the total size of the files below a directory in bytes."""
    return sum(file_size(path / name) for name, directory in filesystem.walk(path) if not directory)


def step_of(opened: OpenedCheckpoint) -> int | None:
    """Return the optimizer step of a checkpoint, from its manifest, its meta or its Brain."""
    checkpoint, manifest = opened.checkpoint, opened.manifest
    if manifest is not None and manifest.step is not None:
        return manifest.step
    if "brain" in checkpoint.paramfiles and "step" not in checkpoint.meta:
        try:
            state = read_state(opened.file(checkpoint.paramfiles["brain"]))
        except (CheckpointError, OSError):
            return None
        step = state.get("optimizer_step") if isinstance(state, dict) else None
    else:
        step = checkpoint.meta.get("step")
    return step if isinstance(step, int) and not isinstance(step, bool) else None
