"""Compare the size of checkpoints with the free space of their disk."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from typing import TYPE_CHECKING

from brain_ckpt.errors import CheckpointSaveError
from brain_ckpt.storage import filesystem

if TYPE_CHECKING:
    from pathlib import Path

    from brain_ckpt.retention.checkpoint import Checkpoint

logger = logging.getLogger(__name__)


def check_fits(root: Path, size_bytes: int, free_bytes: int) -> None:
    """Raise CheckpointSaveError if a checkpoint is larger than the free space."""
    if size_bytes > free_bytes:
        raise CheckpointSaveError(
            f"a checkpoint must fit on the disk, but it takes about {_megabytes(size_bytes)} and "
            f"{_megabytes(free_bytes)} are free in {root}: free space, or choose a directory on "
            f"another disk"
        )


def warn_if_full(root: Path, size_bytes: int, missing: int, free_bytes: int) -> None:
    """Log a warning if the checkpoints that will be kept do not fit.

    Parameters
    ----------
    root : Path
        The directory of checkpoints.
    size_bytes : int
        The size of a checkpoint.
    missing : int
        How many checkpoints will be there besides those that exist.
    free_bytes : int
        The free space.
    """
    if missing * size_bytes > free_bytes:
        logger.warning(
            "The disk will be full: %d more checkpoints of about %s each take %s, and %s are free "
            "in %s. Free space, or keep fewer checkpoints.",
            missing,
            _megabytes(size_bytes),
            _megabytes(missing * size_bytes),
            _megabytes(free_bytes),
            root,
        )


def free_space(root: Path) -> int | None:
    """Return the free bytes of the disk of a directory; None if the system does not say."""
    try:
        return shutil.disk_usage(root).free
    except OSError:
        return None


def size_of(checkpoint: Checkpoint) -> int:
    """Return the size of a checkpoint on the disk; files that go meanwhile count as empty."""
    total = 0
    for name, directory in filesystem.walk(checkpoint.path):
        with contextlib.suppress(OSError):
            total += 0 if directory else os.lstat(checkpoint.path / name).st_size
    return total


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"
