"""Verify and read one state file, with its shards, from one checkpoint."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, TypeVar

from brain_ckpt.errors import CheckpointDamagedError, CheckpointGoneError
from brain_ckpt.loading.shards import assemble
from brain_ckpt.recoverables.serialization import read_state
from brain_ckpt.storage.layout import SHARDS_DIRECTORY
from brain_ckpt.storage.listing import has_manifest, is_unfinished
from brain_ckpt.storage.manifest import MANIFEST_NAME
from brain_ckpt.storage.opened import gone_error, open_checkpoint
from brain_ckpt.storage.verify import verify_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from brain_ckpt.retention.checkpoint import Checkpoint

# How often to read a file that is replaced while it is read, and the pause in between.
_MAX_ATTEMPTS = 50
_PAUSE_S = 0.01

T = TypeVar("T")


@contextlib.contextmanager
def open_state_file(file: Path, listed: Checkpoint | None = None) -> Iterator[Path]:
    """Verify a state file; yield a path that refers to it even if its checkpoint is replaced.

    Parameters
    ----------
    file : Path
        The file, not a link; in a checkpoint or elsewhere.
    listed : Checkpoint, optional
        The checkpoint that the file must still belong to.

    Raises
    ------
    CheckpointGoneError
        If the checkpoint is deleted or replaced.
    CheckpointDamagedError
        If the file differs from what was written.
    """
    commit_id = None if listed is None else listed.commit_id
    if commit_id is None and not (file.parent / MANIFEST_NAME).exists():
        _verify_without_manifest(file)
        yield file
        return
    with open_checkpoint(file.parent) as opened, opened.reading():
        if listed is not None:
            opened.check_same(listed)
        verify_file(opened.file(file))
        yield opened.file(file)
        opened.check_unchanged()


def read_state_file(
    file: Path,
    name: str,
    obj: Any = None,
    *,
    listed: Checkpoint | None = None,
    mmap: bool = False,
) -> Any:
    """Verify and read a state file.

    Parameters
    ----------
    file, listed
        As in `open_state_file`.
    name : str
        The name of its recoverable.
    obj : object, optional
        The object to read sharded tensors for; None gives whole tensors.
    mmap : bool
        As in `read_state`.

    Raises
    ------
    CheckpointGoneError, CheckpointDamagedError
        As in `open_state_file`.
    UnsafeCheckpointError
        If the file names code to run.
    """
    with open_state_file(file, listed) as path:
        state = read_state(path, mmap=mmap)
        return assemble(obj, state, path.parent / SHARDS_DIRECTORY, name)


def _verify_without_manifest(file: Path) -> None:
    try:
        verify_file(file)
    except CheckpointDamagedError:
        # The manifest can be missing because the checkpoint is being deleted or written.
        if not file.exists() or is_unfinished(file.parent) or has_manifest(file.parent):
            raise gone_error(file.parent) from None
        raise


def retry_if_gone(read: Callable[[], T]) -> T:
    """Call a function that reads from a path, again if the checkpoint there is replaced."""
    for _ in range(_MAX_ATTEMPTS):
        with contextlib.suppress(CheckpointGoneError):
            return read()
        time.sleep(_PAUSE_S)
    return read()
