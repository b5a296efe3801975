"""Open a checkpoint once, so that everything read from it is of one save.

A checkpoint can be replaced or deleted while it is read.  Its files are read through a handle of
its directory, which still refers to the same directory after a rename.  Files that are held are
opened before the first of them is read, so that they can be read also after they are deleted.  If
a file is gone, or differs from its checksum, and the checkpoint at the path is another one by now,
it was not damaged but replaced: `CheckpointGoneError` tells the caller to list again.  On a system
without such handles, the commit ids before and after reading are compared.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

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
    from collections.abc import Iterator, Mapping
    from pathlib import Path

# How long to list and open again while each checkpoint is deleted before it is read.
_PATIENCE_S = 600.0
_PAUSE_S = 0.005


class Handles(NamedTuple):
    """Paths by which an open checkpoint can be read.

    Parameters
    ----------
    directory : Path
        The directory; a path of the handle if the system has such paths.
    files : mapping of str to Path
        The held files, by name below the directory.
    """

    directory: Path
    files: Mapping[str, Path]

    def locate(self, name: str) -> Path:
        """Return the path to read a file from."""
        return self.files.get(name, self.directory / name)


class Patience:
    """Limits how long a reader looks again for a checkpoint that stays until it is read.

    Parameters
    ----------
    root : Path
        The directory of checkpoints.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._deadline: float | None = None

    def wait(self) -> None:
        """Wait a moment before the next look.

        Raises
        ------
        CheckpointGoneError
            If the first look was too long ago.
        """
        if self._deadline is None:
            self._deadline = time.monotonic() + _PATIENCE_S
        if time.monotonic() > self._deadline:
            raise CheckpointGoneError(
                f"a checkpoint must exist until it is read, but for {_PATIENCE_S:.0f} s each one "
                f"in {self._root} was deleted or replaced before; keep more checkpoints in the run "
                f"that writes there, or save less often"
            )
        time.sleep(_PAUSE_S)


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A checkpoint whose directory is open.

    Parameters
    ----------
    checkpoint : Checkpoint
        Its path, meta and files, as a user sees them.
    manifest : Manifest or None
        None if SpeechBrain wrote it, or if the manifest cannot be used.
    handles : Handles
        Where to read its files from.
    problem : CheckpointError or None
        The reason why the manifest cannot be used.
    """

    checkpoint: Checkpoint
    manifest: Manifest | None
    handles: Handles
    problem: CheckpointError | None = None

    @property
    def directory(self) -> Path:
        """The directory to read files from."""
        return self.handles.directory

    def file(self, path: Path) -> Path:
        """Return the path to read a file of the checkpoint from."""
        return self.locate(path.relative_to(self.checkpoint.path).as_posix())

    def locate(self, name: str) -> Path:
        """Return the path to read a file from, by its name below the directory."""
        return self.handles.locate(name)

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
            raise self._with_usual_paths(error) from error.__cause__

    def _with_usual_paths(self, error: Exception) -> Exception:
        path = self.checkpoint.path
        usual = {str(held): str(path / name) for name, held in self.handles.files.items()}
        usual[str(self.directory)] = str(path)

        def corrected(text: str) -> str:
            longest_first = sorted(map(re.escape, usual), key=len, reverse=True)
            return re.sub(
                rf"({'|'.join(longest_first)})(?!\d)", lambda found: usual[found[0]], text
            )

        if isinstance(error, FileNotFoundError):
            return FileNotFoundError(error.errno, error.strerror, corrected(str(error.filename)))
        return type(error)(corrected(str(error)))


@contextlib.contextmanager
def open_checkpoint(
    path: Path, *, hold: bool = False, through: Handles | None = None
) -> Iterator[OpenedCheckpoint]:
    """Open a checkpoint, and read its manifest and meta; read files of it in `reading`.

    Parameters
    ----------
    path : Path
        Its directory.
    hold : bool
        Whether to open its files, too, so that they can be read also after they are deleted.
    through : Handles, optional
        The handles of another process of this machine, which holds the checkpoint.

    Raises
    ------
    CheckpointGoneError
        If it is deleted or replaced before or while it is read.
    CheckpointDamagedError
        If it has no meta that can be read.
    """
    with contextlib.ExitStack() as stack:
        if through is not None:
            yield _open(path, through)
            return
        try:
            directory = stack.enter_context(filesystem.opened_directory(path))
        except (FileNotFoundError, NotADirectoryError):
            raise gone_error(path) from None
        if not hold:
            yield _open(path, Handles(directory, {}))
            return
        first = stack.enter_context(filesystem.held_files(directory, [MANIFEST_NAME, META_NAME]))
        opened = _open(path, Handles(directory, first))
        others = stack.enter_context(filesystem.held_files(directory, _other_files(opened)))
        yield replace(opened, handles=Handles(directory, {**first, **others}))


def read_manifest(directory: Path) -> Manifest | None:
    """Read the manifest in a directory; None if there is none because SpeechBrain wrote it."""
    path = directory / MANIFEST_NAME
    return _read_manifest(path, str(path))


def _read_manifest(path: Path, shown: str) -> Manifest | None:
    try:
        content = filesystem.read(path, MANIFEST_LIMIT_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointDamagedError(f"{shown} cannot be read: {error.strerror}") from error
    return load_manifest(content, shown)


def gone_error(path: Path) -> CheckpointGoneError:
    """Return the error of a checkpoint that was deleted or replaced."""
    return CheckpointGoneError(
        f"a checkpoint must exist while it is read, but {path} was deleted or replaced; list the "
        f"checkpoints again"
    )


def _open(path: Path, handles: Handles) -> OpenedCheckpoint:
    directory, manifest, problem = handles.directory, None, None
    try:
        manifest = _read_manifest(handles.locate(MANIFEST_NAME), os.path.join(path, MANIFEST_NAME))
    except CheckpointError as error:
        problem = error
    try:
        content = filesystem.read(handles.locate(META_NAME), META_LIMIT_BYTES)
    except FileNotFoundError:
        if _is_going(path, directory) or not _has_state_files(directory):
            raise gone_error(path) from None
        raise CheckpointDamagedError(f"{path} has no {META_NAME}") from None
    meta = load_meta(content, os.path.join(path, META_NAME))
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
    return OpenedCheckpoint(checkpoint, manifest, handles, problem)


def _other_files(opened: OpenedCheckpoint) -> list[str]:
    if opened.manifest is None:
        return [file.name for file in opened.checkpoint.paramfiles.values()]
    return [name for name in opened.manifest.files if name not in opened.handles.files]


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
