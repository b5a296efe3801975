"""Open a checkpoint once, so that everything read from it is of one save.

A checkpoint can be replaced or deleted while it is read.  Its files are read through a handle of
its directory, which still refers to the same directory after a rename.  If a file is gone, or
differs from its checksum, and the checkpoint at the path is another one by now, it was not damaged
but replaced: `CheckpointGoneError` tells the caller to list again.  On a system without handles of
directories, the commit ids before and after reading are compared.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from brain_ckpt.errors import CheckpointDamagedError, CheckpointError, CheckpointGoneError
from brain_ckpt.retention.checkpoint import Checkpoint
from brain_ckpt.storage import filesystem
from brain_ckpt.storage.layout import META_NAME, PARAMFILE_EXT, UNFINISHED
from brain_ckpt.storage.manifest import (
    MANIFEST_LIMIT_BYTES,
    MANIFEST_NAME,
    Manifest,
    load_manifest,
)
from brain_ckpt.storage.meta import META_LIMIT_BYTES, load_meta
from brain_ckpt.storage.meta_arrays import restore_arrays

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A checkpoint whose directory is open.

    Parameters
    ----------
    checkpoint : Checkpoint
        Its path, meta and files, as a user sees them.
    manifest : Manifest or None
        None if SpeechBrain wrote it, or if the manifest cannot be used.
    directory : Path
        The directory to read files from; a path of the handle if the system has such paths.
    problem : CheckpointError or None
        The reason why the manifest cannot be used.
    """

    checkpoint: Checkpoint
    manifest: Manifest | None
    directory: Path
    problem: CheckpointError | None = None

    def file(self, path: Path) -> Path:
        """Return the path to read a file of the checkpoint from."""
        return self.directory / path.relative_to(self.checkpoint.path)

    def has_file(self, name: str) -> bool:
        """Return whether a file, by its name below the directory, is part of the checkpoint."""
        if self.manifest is None:
            return (self.directory / name).is_file()
        return name in self.manifest.files

    def is_current(self) -> bool:
        """Return whether the checkpoint at the path is still this one."""
        path = self.checkpoint.path
        if self.manifest is None:
            return _is_same_directory(path, self.directory)
        try:
            manifest = read_manifest(path)
        except CheckpointError:
            return False
        return manifest is not None and manifest.commit_id == self.manifest.commit_id

    def check_unchanged(self) -> None:
        """Raise CheckpointGoneError if files were read without a handle from a replaced one."""
        if self.directory == self.checkpoint.path and not self.is_current():
            raise gone_error(self.checkpoint.path)

    def check_same(self, listed: Checkpoint) -> None:
        """Raise CheckpointGoneError if a checkpoint that was listed has been replaced since."""
        same = self.checkpoint.commit_id == listed.commit_id
        if listed.commit_id is not None and not same:
            raise gone_error(listed.path)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Raise the errors of the body with the usual paths, or CheckpointGoneError."""
        try:
            yield
        except CheckpointGoneError:
            raise
        except (CheckpointError, FileNotFoundError) as error:
            damaged = isinstance(error, (CheckpointDamagedError, FileNotFoundError))
            if damaged and not self.is_current():
                raise gone_error(self.checkpoint.path) from error
            raise _with_usual_path(error, self.directory, self.checkpoint.path) from error.__cause__


@contextlib.contextmanager
def open_checkpoint(path: Path) -> Iterator[OpenedCheckpoint]:
    """Open a checkpoint, and read its manifest and meta; read files of it in `reading`.

    Raises
    ------
    CheckpointGoneError
        If it is deleted or replaced before or while it is read.
    CheckpointDamagedError
        If it has no meta that can be read.
    """
    with contextlib.ExitStack() as stack:
        try:
            directory = stack.enter_context(filesystem.opened_directory(path))
        except (FileNotFoundError, NotADirectoryError):
            raise gone_error(path) from None
        yield _open(path, directory)


def read_manifest(directory: Path, shown: Path | None = None) -> Manifest | None:
    """Read the manifest in a directory; None if there is none because SpeechBrain wrote it."""
    file = (shown or directory) / MANIFEST_NAME
    try:
        content = filesystem.read(directory / MANIFEST_NAME, MANIFEST_LIMIT_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointDamagedError(f"{file} cannot be read: {error.strerror}") from error
    return load_manifest(content, str(file))


def gone_error(path: Path) -> CheckpointGoneError:
    """Return the error of a checkpoint that was deleted or replaced."""
    return CheckpointGoneError(
        f"a checkpoint must exist while it is read, but {path} was deleted or replaced; list the "
        f"checkpoints again"
    )


def _open(path: Path, directory: Path) -> OpenedCheckpoint:
    manifest, problem = None, None
    try:
        manifest = read_manifest(directory, path)
    except CheckpointError as error:
        problem = error
    try:
        content = filesystem.read(directory / META_NAME, META_LIMIT_BYTES)
    except FileNotFoundError:
        if _is_going(path, directory) or not _has_state_files(directory):
            raise gone_error(path) from None
        raise CheckpointDamagedError(f"{path} has no {META_NAME}") from None
    meta = load_meta(content, str(path / META_NAME))
    if manifest is None:
        # Unless SpeechBrain wrote it, the manifest can be missing because of a deletion.
        if _is_going(path, directory):
            raise gone_error(path)
        names = [
            name for name in filesystem.names(directory) if not os.path.isdir(directory / name)
        ]
    else:
        restore_arrays(meta, manifest.meta_arrays)
        names = [name for name in manifest.files if "/" not in name]
    files = {
        name.removesuffix(PARAMFILE_EXT): path / name
        for name in names
        if name.endswith(PARAMFILE_EXT)
    }
    commit_id = None if manifest is None else manifest.commit_id
    checkpoint = Checkpoint(path, meta, files, commit_id=commit_id)
    return OpenedCheckpoint(checkpoint, manifest, directory, problem)


def _is_same_directory(path: Path, directory: Path) -> bool:
    try:
        return os.path.samefile(path, directory)
    except OSError:
        return False


def _is_going(path: Path, directory: Path) -> bool:
    """Return whether an open directory is being deleted, after a rename or in place."""
    is_marked = os.path.lexists(directory / UNFINISHED)
    return is_marked or not _is_same_directory(path, directory)


def _has_state_files(directory: Path) -> bool:
    return any(name.endswith(PARAMFILE_EXT) for name in filesystem.names(directory))


def _with_usual_path(error: Exception, directory: Path, path: Path) -> Exception:
    if isinstance(error, FileNotFoundError):
        name = str(error.filename).replace(str(directory), str(path), 1)
        return FileNotFoundError(error.errno, error.strerror, name)
    return type(error)(str(error).replace(str(directory), str(path)))
