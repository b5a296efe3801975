"""Publish and delete checkpoints atomically: by a rename, or by the manifest.

At any time, also after a kill or a power loss, a checkpoint exists completely or not at all.  By a
rename: a finished directory is renamed to its final name, and renamed again to be deleted.  By the
manifest, for file systems that rename a directory file by file: a checkpoint is written in place,
with a file that marks it as unfinished, and exists once its manifest, written last, is complete.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from brain_ckpt.storage import filesystem
from brain_ckpt.storage.layout import (
    META_NAME,
    UNFINISHED,
    new_name,
    old_name,
    temporary_name,
    trash_name,
)
from brain_ckpt.storage.manifest import MANIFEST_NAME
from brain_ckpt.storage.stream import Stream, write_file

if TYPE_CHECKING:
    from pathlib import Path

    from brain_ckpt.storage.checksum import Algorithm, FileDigest

logger = logging.getLogger(__name__)

_COPY_BYTES = 2**22


@dataclass
class Staging:
    """A checkpoint that is being written.

    Parameters
    ----------
    path : Path
        The directory that it is written in.
    final : Path
        The directory after publication; the same as `path` if directories are not renamed.
    files : dict of str to FileDigest
        The digests of the files written so far, by name below the directory.
    manifest : bytes
        The content of the manifest, which is written last.
    """

    path: Path
    final: Path
    files: dict[str, FileDigest] = field(default_factory=dict)
    manifest: bytes = b""


class CommitProtocol(Protocol):
    """The steps that differ between the two ways of publishing a checkpoint."""

    def staging_name(self, name: str, number: int, *, replaces: bool) -> str:
        """Return the name of the directory to write a checkpoint in."""

    def open(self, path: Path) -> None:
        """Make the directory to write in."""

    def write_meta(self, path: Path, content: bytes, algorithm: Algorithm) -> FileDigest:
        """Write CKPT.yaml, by which SpeechBrain recognizes a checkpoint."""

    def seal(self, staging: Staging) -> None:
        """Flush the directory to the disk; nothing more is written before publication."""

    def publish(self, staging: Staging) -> None:
        """Publish the checkpoint durably."""

    def discard(self, path: Path) -> None:
        """Remove a directory that will not be published."""

    def delete(self, paths: list[Path]) -> None:
        """Delete checkpoints, each atomically."""

    def move(self, source: Path, target: Path) -> None:
        """Move a checkpoint to another folder."""


class RenameCommit:
    """Publishes a checkpoint by renaming its finished directory.

    Parameters
    ----------
    root : Path
        The directory of checkpoints.
    run_id : str
        The identity of this run, part of the names of its unfinished directories.
    """

    def __init__(self, root: Path, run_id: str) -> None:
        self._root = root
        self._run_id = run_id

    def staging_name(self, name: str, number: int, *, replaces: bool) -> str:
        """Return a temporary name."""
        del replaces
        return temporary_name(name, self._run_id, number)

    def open(self, path: Path) -> None:
        """Make a temporary directory."""
        filesystem.mkdir(path)

    def write_meta(self, path: Path, content: bytes, algorithm: Algorithm) -> FileDigest:
        """Write CKPT.yaml; nobody sees it before the rename."""
        return write_bytes(path, content, algorithm)

    def seal(self, staging: Staging) -> None:
        """Write the manifest and flush the directory to the disk."""
        write_bytes(staging.path / MANIFEST_NAME, staging.manifest)
        fsync_directories(staging.path)

    def publish(self, staging: Staging) -> None:
        """Rename the directory; rename a replaced checkpoint first, and back after a failure."""
        final = staging.final
        old = self._root / old_name(final.name, self._run_id)
        replaced = filesystem.is_directory(final)
        if replaced:
            filesystem.rename(final, old)
        try:
            filesystem.rename(staging.path, final)
        except BaseException:
            if replaced:
                with contextlib.suppress(OSError):
                    filesystem.rename(old, final)
            raise
        filesystem.fsync_directory(self._root)

    def discard(self, path: Path) -> None:
        """Remove a temporary directory."""
        filesystem.remove_tree(path)

    def delete(self, paths: list[Path]) -> None:
        """Rename the directories, flush the renames to the disk, then remove them."""
        trashed = []
        for path in paths:
            trash = self._root / trash_name(path.name, self._run_id)
            if filesystem.is_directory(trash):
                filesystem.remove_tree(trash)
            filesystem.rename(path, trash)
            trashed.append(trash)
        if trashed:
            filesystem.fsync_directory(self._root)
        for trash in trashed:
            filesystem.remove_tree(trash)

    def move(self, source: Path, target: Path) -> None:
        """Rename the directory, and flush the rename to the disk."""
        filesystem.rename(source, target)
        filesystem.fsync_directory(target.parent)
        filesystem.fsync_directory(source.parent)


class ManifestCommit:
    """Publishes a checkpoint by writing its manifest last; no directory is renamed.

    Parameters
    ----------
    root : Path
        The directory of checkpoints.
    run_id : str
        The identity of this run.
    """

    def __init__(self, root: Path, run_id: str) -> None:
        self._root = root
        self._run_id = run_id

    def staging_name(self, name: str, number: int, *, replaces: bool) -> str:
        """Return the final name, or a temporary one for a checkpoint that replaces another."""
        del number
        return new_name(name, self._run_id) if replaces else name

    def open(self, path: Path) -> None:
        """Make the directory with the file that marks it as unfinished."""
        filesystem.mkdir(path)
        mark_unfinished(path, self._run_id)

    def write_meta(self, path: Path, content: bytes, algorithm: Algorithm) -> FileDigest:
        """Write a temporary file and rename it; every file system renames files atomically."""
        part = path.with_name(f".{path.name}.part")
        digest = write_bytes(part, content, algorithm)
        filesystem.rename(part, path)
        return digest

    def seal(self, staging: Staging) -> None:
        """Flush everything but the manifest to the disk."""
        fsync_directories(staging.path)

    def publish(self, staging: Staging) -> None:
        """Write the manifest; then replace an older checkpoint of the same name."""
        self._complete(staging.path, staging.manifest)
        if staging.path == staging.final:
            return
        try:
            self.replace(staging.path, staging.final)
        except OSError as error:
            # The checkpoint is durable and listed; the next cleanup moves it.
            logger.warning(
                "Checkpoint %s stays in %s until the next save: %s",
                staging.final,
                staging.path,
                error,
            )

    def discard(self, path: Path) -> None:
        """Remove an unfinished directory."""
        remove_marked(path)

    def delete(self, paths: list[Path]) -> None:
        """Mark the directories as unfinished and remove them, the manifest first."""
        for path in paths:
            mark_unfinished(path, self._run_id)
            remove_marked(path)

    def move(self, source: Path, target: Path) -> None:
        """Copy the directory, and delete it once the copy is complete."""
        self.replace(source, target)

    def replace(self, source: Path, final: Path) -> None:
        """Replace a checkpoint with a copy; the source is listed until the copy is complete."""
        if filesystem.is_directory(final):
            self.delete([final])
        self.open(final)
        for name, directory in filesystem.walk(source):
            if directory:
                filesystem.mkdir(final / name)
            elif name not in (META_NAME, MANIFEST_NAME, UNFINISHED):
                _copy(source / name, final / name)
        self.write_meta(final / META_NAME, _read(source / META_NAME), "crc32")
        fsync_directories(final)
        self._complete(final, _read(source / MANIFEST_NAME))
        self.delete([source])

    def _complete(self, path: Path, manifest: bytes) -> None:
        write_bytes(path / MANIFEST_NAME, manifest)
        filesystem.fsync_directory(path)
        filesystem.fsync_directory(self._root)
        with contextlib.suppress(OSError):  # the mark is ignored beside a complete manifest
            filesystem.unlink(path / UNFINISHED)


def mark_unfinished(path: Path, run_id: str) -> None:
    """Mark a directory as being written or deleted, and flush the mark to the disk."""
    mark = path / UNFINISHED
    filesystem.unlink(mark)
    write_bytes(mark, run_id.encode())
    filesystem.fsync_directory(path)


def remove_marked(path: Path) -> None:
    """Remove an unfinished directory: manifest and meta first, the mark last."""
    filesystem.unlink(path / MANIFEST_NAME)
    filesystem.fsync_directory(path)  # as long as it exists, so must the files that it names
    filesystem.unlink(path / META_NAME)
    filesystem.fsync_directory(path)
    for name in filesystem.names(path):
        if filesystem.is_directory(path / name):
            filesystem.remove_tree(path / name)
        elif name != UNFINISHED:
            filesystem.unlink(path / name)
    filesystem.fsync_directory(path)
    filesystem.unlink(path / UNFINISHED)
    filesystem.rmdir(path)


def write_bytes(path: Path, content: bytes, algorithm: Algorithm = "crc32") -> FileDigest:
    """Write a new small file."""

    def produce(stream: Stream) -> None:
        stream.write(content)

    return write_file(path, produce, algorithm)


def fsync_directories(path: Path) -> None:
    """Flush the entries of a directory and of those below it to the disk."""
    for name, directory in filesystem.walk(path):
        if directory:
            filesystem.fsync_directory(path / name)
    filesystem.fsync_directory(path)


def _read(path: Path) -> bytes:
    with filesystem.opened(path) as (descriptor, size):
        return filesystem.read_at(descriptor, size, 0)


def _copy(source: Path, target: Path) -> None:
    def produce(stream: Stream) -> None:
        with filesystem.opened(source) as (descriptor, size):
            for start in range(0, size, _COPY_BYTES):
                stream.write(filesystem.read_at(descriptor, _COPY_BYTES, start))

    write_file(target, produce)
