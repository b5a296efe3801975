"""How a checkpoint appears and how it goes: by a rename, or by its manifest.

At any instant, also one of a kill or a loss of power, each checkpoint is there as a whole or not
at all.  By a rename: a finished directory gets its name in one step, and loses it in another.
By its manifest, for file systems that rename a directory file by file: it is written in its own
place, beside a mark that says so, and counts from when its manifest, written last, is whole.
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
        Where it is written.
    final : Path
        Where it will be published; `path` itself where nothing is renamed.
    files : dict of str to FileDigest
        What was written so far, by name below the directory.
    manifest : bytes
        The content of the file that is written last.
    """

    path: Path
    final: Path
    files: dict[str, FileDigest] = field(default_factory=dict)
    manifest: bytes = b""


class Publication(Protocol):
    """The steps that differ; `root` is the directory of checkpoints."""

    def directory(self, name: str, number: int, *, replaces: bool) -> str:
        """Return the name of the directory to write a checkpoint in."""

    def open(self, path: Path) -> None:
        """Make that directory."""

    def write_meta(self, path: Path, content: bytes, algorithm: Algorithm) -> FileDigest:
        """Write the file by which SpeechBrain knows a checkpoint; it reads it without a lock."""

    def seal(self, staging: Staging) -> None:
        """Have the disk confirm the directory, to which no more is written before publication."""

    def publish(self, staging: Staging) -> None:
        """Have it appear; once this returns, nothing takes it away again."""

    def discard(self, path: Path) -> None:
        """Remove what will not be published."""

    def delete(self, paths: list[Path]) -> None:
        """Have checkpoints go, each as a whole."""


class ByRename:
    """A finished directory gets its name in one step.

    Parameters
    ----------
    root : Path
        The directory of checkpoints.
    run : str
        The identity of this run, part of the names of what it leaves unfinished.
    """

    def __init__(self, root: Path, run: str) -> None:
        self._root = root
        self._run = run

    def directory(self, name: str, number: int, *, replaces: bool) -> str:
        """Return a temporary name."""
        del replaces
        return temporary_name(name, self._run, number)

    def open(self, path: Path) -> None:
        """Make a temporary directory."""
        filesystem.mkdir(path)

    def write_meta(self, path: Path, content: bytes, algorithm: Algorithm) -> FileDigest:
        """Write it: nobody sees it before the directory has its name."""
        return write_bytes(path, content, algorithm)

    def seal(self, staging: Staging) -> None:
        """Write the manifest, and have the disk confirm the directory."""
        write_bytes(staging.path / MANIFEST_NAME, staging.manifest)
        fsync_directories(staging.path)

    def publish(self, staging: Staging) -> None:
        """Rename; a checkpoint that has the name steps aside first, and is put back on failure."""
        final = staging.final
        aside = self._root / old_name(final.name, self._run)
        replaced = filesystem.is_directory(final)
        if replaced:
            filesystem.rename(final, aside)
        try:
            filesystem.rename(staging.path, final)
        except BaseException:
            if replaced:
                with contextlib.suppress(OSError):
                    filesystem.rename(aside, final)
            raise
        filesystem.fsync_directory(self._root)

    def discard(self, path: Path) -> None:
        """Remove a temporary directory."""
        filesystem.remove_tree(path)

    def delete(self, paths: list[Path]) -> None:
        """Rename, have the disk confirm it, and only then remove."""
        trashed = []
        for path in paths:
            trash = self._root / trash_name(path.name, self._run)
            if filesystem.is_directory(trash):
                filesystem.remove_tree(trash)
            filesystem.rename(path, trash)
            trashed.append(trash)
        if trashed:
            filesystem.fsync_directory(self._root)
        for trash in trashed:
            filesystem.remove_tree(trash)


class ByManifest:
    """A directory counts from when its manifest, written last, is there; no directory is renamed.

    Parameters
    ----------
    root : Path
        The directory of checkpoints.
    run : str
        The identity of this run.
    """

    def __init__(self, root: Path, run: str) -> None:
        self._root = root
        self._run = run

    def directory(self, name: str, number: int, *, replaces: bool) -> str:
        """Return its own name; that of a second one while the first is still needed."""
        del number
        return new_name(name, self._run) if replaces else name

    def open(self, path: Path) -> None:
        """Make the directory, with the mark in it."""
        filesystem.mkdir(path)
        mark_unfinished(path, self._run)

    def write_meta(self, path: Path, content: bytes, algorithm: Algorithm) -> FileDigest:
        """Write it beside its place, and rename it: a file is renamed in one step everywhere."""
        part = path.with_name(f".{path.name}.part")
        digest = write_bytes(part, content, algorithm)
        filesystem.rename(part, path)
        return digest

    def seal(self, staging: Staging) -> None:
        """Have the disk confirm all but the manifest."""
        fsync_directories(staging.path)

    def publish(self, staging: Staging) -> None:
        """Write the manifest; then replace the older checkpoint of the name, if there is one."""
        self._complete(staging.path, staging.manifest)
        if staging.path == staging.final:
            return
        try:
            self.replace(staging.path, staging.final)
        except OSError as error:
            # It is on the disk, and listed; the next tidying moves it to its place.
            logger.warning("%s stays in %s for now: %s", staging.final, staging.path, error)

    def discard(self, path: Path) -> None:
        """Remove a directory that is marked."""
        remove_marked(path)

    def delete(self, paths: list[Path]) -> None:
        """Mark, and then remove, the manifest first."""
        for path in paths:
            mark_unfinished(path, self._run)
            remove_marked(path)

    def replace(self, source: Path, final: Path) -> None:
        """Copy a whole checkpoint over one of its name; while it lasts, the source counts."""
        if filesystem.is_directory(final):
            self.delete([final])
        self.open(final)
        for name, directory in filesystem.walk(source):
            if directory:
                filesystem.mkdir(final / name)
            elif name not in (META_NAME, MANIFEST_NAME, UNFINISHED):
                _copy(source / name, final / name)
        self.write_meta(final / META_NAME, _content(source / META_NAME), "crc32")
        fsync_directories(final)
        self._complete(final, _content(source / MANIFEST_NAME))
        self.delete([source])

    def _complete(self, path: Path, manifest: bytes) -> None:
        write_bytes(path / MANIFEST_NAME, manifest)
        filesystem.fsync_directory(path)
        filesystem.fsync_directory(self._root)
        with contextlib.suppress(OSError):  # a mark beside a whole manifest says nothing
            filesystem.unlink(path / UNFINISHED)


def mark_unfinished(path: Path, run: str) -> None:
    """Mark a directory as being written, or deleted, and have the disk confirm the mark."""
    mark = path / UNFINISHED
    filesystem.unlink(mark)
    write_bytes(mark, run.encode())
    filesystem.fsync_directory(path)


def remove_marked(path: Path) -> None:
    """Remove a marked directory: what makes it a checkpoint first, the mark last."""
    filesystem.unlink(path / MANIFEST_NAME)
    filesystem.fsync_directory(path)  # while it is there, all that it names has to be
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
    """Write a small file that is not there yet."""

    def produce(stream: Stream) -> None:
        stream.write(content)

    return write_file(path, produce, algorithm)


def fsync_directories(path: Path) -> None:
    """Have the disk confirm the names in a directory and in those below it."""
    for name, directory in filesystem.walk(path):
        if directory:
            filesystem.fsync_directory(path / name)
    filesystem.fsync_directory(path)


def _content(path: Path) -> bytes:
    with filesystem.opened(path) as (descriptor, size):
        return filesystem.read_at(descriptor, size, 0)


def _copy(source: Path, target: Path) -> None:
    def produce(stream: Stream) -> None:
        with filesystem.opened(source) as (descriptor, size):
            for start in range(0, size, _COPY_BYTES):
                stream.write(filesystem.read_at(descriptor, _COPY_BYTES, start))

    write_file(target, produce)
