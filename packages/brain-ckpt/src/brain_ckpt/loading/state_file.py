"""Verify and read one state file, with its shards, from one checkpoint."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from brain_ckpt.errors import CheckpointDamagedError, CheckpointGoneError
from brain_ckpt.loading.shards import assemble
from brain_ckpt.recoverables.serialization import read_state
from brain_ckpt.storage.listing import has_manifest, is_unfinished
from brain_ckpt.storage.manifest import MANIFEST_NAME
from brain_ckpt.storage.opened import Patience, gone_error, open_checkpoint
from brain_ckpt.storage.verify import verify_file, verify_state_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from brain_ckpt.retention.checkpoint import Checkpoint

T = TypeVar("T")


class StateFile(NamedTuple):
    """A verified state file.

    Parameters
    ----------
    path : Path
        The path to read it from.
    locate : callable
        Returns the path to read another file of its checkpoint from, by name.
    """

    path: Path
    locate: Callable[[str], Path]


@contextlib.contextmanager
def open_state_file(file: Path, listed: Checkpoint | None = None) -> Iterator[StateFile]:
    """Verify a state file; yield where it can be read even if its checkpoint is replaced.

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
        yield StateFile(file, file.parent.joinpath)
        return
    with open_checkpoint(file.parent, hold=True) as opened, opened.reading():
        if listed is not None:
            opened.check_same(listed)
        verify_state_file(opened, file.name)
        yield StateFile(opened.file(file), opened.locate)
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
    with open_state_file(file, listed) as (path, locate):
        state = read_state(path, mmap=mmap)
        return assemble(obj, state, locate, name)


def _verify_without_manifest(file: Path) -> None:
    try:
        verify_file(file)
    except CheckpointDamagedError:
        # The manifest can be missing because the checkpoint is being deleted or written.
        if not file.exists() or is_unfinished(file.parent) or has_manifest(file.parent):
            raise gone_error(file.parent) from None
        raise


def retry_if_gone(read: Callable[[], T], path: Path) -> T:
    """Call a function that reads from a path, again if a checkpoint there is replaced."""
    patience = Patience(path)
    while True:
        with contextlib.suppress(CheckpointGoneError):
            return read()
        patience.wait()
