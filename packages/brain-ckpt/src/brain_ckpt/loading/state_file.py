"""Verify and read one state file, with its shards, from one checkpoint."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from brain_ckpt.errors import CheckpointDamagedError, CheckpointGoneError
from brain_ckpt.loading.shards import assemble
from brain_ckpt.recoverables.serialization import read_state
from brain_ckpt.storage.layout import PREFIX
from brain_ckpt.storage.listing import has_manifest, is_unfinished, published_directory
from brain_ckpt.storage.manifest import MANIFEST_NAME
from brain_ckpt.storage.opened import Patience, gone_error, open_checkpoint
from brain_ckpt.storage.verify import verify_file, verify_state_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from brain_ckpt.retention.checkpoint import Checkpoint

T = TypeVar("T")

# A file that is in none of so many looks, 5 ms apart, does not exist.
_MAX_MISSING = 40


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
        with reading_without_manifest(file):
            verify_file(file)
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


@contextlib.contextmanager
def reading_without_manifest(file: Path) -> Iterator[None]:
    """Raise CheckpointGoneError if the file's checkpoint is being written or deleted.

    The manifest is missing then, too, and a file that is half written can look whole: an empty one
    is an empty text.
    """

    def is_changing() -> bool:
        return is_unfinished(file.parent) or has_manifest(file.parent)

    try:
        yield
    except CheckpointDamagedError:
        if not file.exists() or is_changing():
            raise gone_error(file.parent) from None
        raise
    if is_changing():
        raise gone_error(file.parent)


def _current_file(path: Path) -> Path | None:
    """Return where the file of a path is now, or None.

    A checkpoint that is replaced is for a moment not at its usual path.
    """
    if path.is_file():
        return path
    if not path.parent.name.startswith(PREFIX):
        return None
    other = published_directory(path.parent) / path.name
    return other if other.is_file() else None


def read_current(read: Callable[[Path], T], path: Path) -> T:
    """Call a function with where a file is now, again if its checkpoint is replaced.

    Parameters
    ----------
    read : callable
        Reads the file; it may raise CheckpointGoneError or FileNotFoundError if that is gone.
    path : Path
        The usual path of the file, not a link.

    Raises
    ------
    FileNotFoundError
        If the file is nowhere, in many looks.
    CheckpointGoneError
        If the checkpoint is replaced before it is read, again and again for minutes.
    """
    patience = Patience(path.parent)
    missing = 0
    while missing < _MAX_MISSING:
        file = _current_file(path)
        missing = missing + 1 if file is None else 0
        if file is not None:
            try:
                return read(file)
            except CheckpointGoneError:
                pass
            except FileNotFoundError:
                if file.is_file():  # what it needs is missing
                    raise
        patience.wait()
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))


def retry_if_gone(read: Callable[[], T], path: Path) -> T:
    """Call a function that reads a directory, again if a checkpoint there is replaced."""
    patience = Patience(path)
    while True:
        with contextlib.suppress(CheckpointGoneError):
            return read()
        patience.wait()
