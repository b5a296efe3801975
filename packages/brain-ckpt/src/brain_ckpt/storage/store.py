"""A directory of checkpoints, for who holds its lock: writing one, deleting some, tidying up."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from typing import TYPE_CHECKING

from brain_ckpt.errors import CheckpointError
from brain_ckpt.storage import filesystem
from brain_ckpt.storage.commit import (
    ByManifest,
    ByRename,
    Publication,
    Staging,
    remove_marked,
    write_bytes,
)
from brain_ckpt.storage.layout import (
    META_NAME,
    NEW,
    OLD,
    PREFIX,
    TEMPORARY,
    UNFINISHED,
    Leftover,
    parse_leftover,
)
from brain_ckpt.storage.listing import (
    GoneError,
    Listing,
    has_manifest,
    is_unfinished,
    list_published,
    read_checkpoint,
    read_manifest,
)
from brain_ckpt.storage.manifest import Manifest, dump_manifest
from brain_ckpt.storage.stream import adopt_file
from brain_ckpt.storage.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

    from brain_ckpt.storage.checksum import Algorithm

logger = logging.getLogger(__name__)

# What this process is writing, through whichever checkpointer: never swept.
_in_flight: set[str] = set()


class Store:
    """The operations on a save directory.

    Parameters
    ----------
    root : Path
        The directory, which is there.
    run : str
        The identity of this run, part of the names of what it leaves unfinished.
    algorithm : str
        The checksum.
    renames : bool
        Whether the file system renames a directory in one step.
    """

    def __init__(
        self, root: Path, run: str, algorithm: Algorithm = "crc32", *, renames: bool = True
    ) -> None:
        self.root = root
        self.run = run
        self.algorithm = algorithm
        self._publication: Publication = (ByRename if renames else ByManifest)(root, run)
        self._number = 0

    def listing(self) -> Listing:
        """List what is published; a reader needs no lock and changes nothing."""
        return list_published(self.root)

    def directory(self, name: str, *, replaces: bool) -> str:
        """Return the name of the directory to write a checkpoint in."""
        self._number += 1
        return self._publication.directory(name, self._number, replaces=replaces)

    def stage(self, directory: str, name: str) -> Staging:
        """Make the directory for a checkpoint that is to have a name."""
        path = self.root / directory
        _in_flight.add(os.path.realpath(path))
        staging = Staging(path, self.root / name)
        try:
            self._publication.open(path)
        except FileExistsError:
            _in_flight.discard(os.path.realpath(path))
            raise
        except BaseException:
            self.discard(staging)
            raise
        return staging

    def subdirectory(self, staging: Staging, name: str) -> Path:
        """Make the directories of a path below the one that is written, where there are none."""
        path = staging.path
        for part in name.split("/"):
            path = path / part
            if not filesystem.is_directory(path):
                filesystem.mkdir(path)
        return path

    def write(self, staging: Staging, name: str, content: bytes) -> None:
        """Write a small file of a checkpoint."""
        staging.files[name] = write_bytes(staging.path / name, content, self.algorithm)

    def sweep_in(self, staging: Staging) -> None:
        """Take in what hooks have written past us, and refuse links."""
        for name, directory in filesystem.walk(staging.path):
            path = staging.path / name
            if path.is_symlink():
                raise CheckpointError(
                    f"a checkpoint holds files and directories of its own, got the link {path}; "
                    f"have the hook write or copy the file itself"
                )
            if not directory and name not in staging.files and name != UNFINISHED:
                staging.files[name] = adopt_file(path, self.algorithm)

    def seal(self, staging: Staging, meta: bytes, manifest: Manifest) -> None:
        """Write the meta file, and have the disk confirm all that comes before publication."""
        file = staging.path / META_NAME
        staging.files[META_NAME] = self._publication.write_meta(file, meta, self.algorithm)
        staging.manifest = dump_manifest(
            dataclasses.replace(manifest, files=dict(staging.files), algorithm=self.algorithm)
        )
        self._publication.seal(staging)

    def publish(self, staging: Staging) -> None:
        """Have a sealed checkpoint appear; once this returns, nothing takes it away again."""
        self._publication.publish(staging)
        _in_flight.discard(os.path.realpath(staging.path))

    def discard(self, staging: Staging) -> None:
        """Delete what will not be published; what cannot be deleted now is swept later."""
        _in_flight.discard(os.path.realpath(staging.path))
        with contextlib.suppress(OSError):
            self._publication.discard(staging.path)

    def delete(self, paths: list[Path]) -> None:
        """Delete checkpoints, each as a whole."""
        self._publication.delete(paths)

    def tidy(self) -> None:
        """Put back what a replacement left aside, and delete what dead runs left unfinished.

        Only for who holds the lock: nobody else's run is alive then.
        """
        self._finish_marked()
        leftovers = self._leftovers()
        doomed = [
            self.root / name for name, leftover in leftovers if not self._put_back(leftover, name)
        ]
        if any(leftover.kind == OLD for _, leftover in leftovers):
            # What stepped aside may only go once its successor's name is on the disk.
            filesystem.fsync_directory(self.root)
        for path in doomed:
            remove = remove_marked if os.path.lexists(path / UNFINISHED) else filesystem.remove_tree
            remove(path)

    def prepared(self) -> dict[str, Staging]:
        """Return what dead runs have sealed and not published, by commit."""
        found = {}
        for name, leftover in self._leftovers():
            if leftover.kind != TEMPORARY:
                continue
            path = self.root / name
            try:
                manifest = verify(read_checkpoint(path))
            except (CheckpointError, OSError, GoneError):
                continue
            if manifest is not None:
                found[manifest.commit] = Staging(path, self.root / leftover.checkpoint)
        return found

    def commits(self) -> dict[str, str]:
        """Return the names of published checkpoints by commit; SpeechBrain's by their names."""
        found = {}
        for checkpoint in self.listing().checkpoints:
            with contextlib.suppress(CheckpointError):
                manifest = read_manifest(checkpoint.path)
                name = checkpoint.path.name
                found[name if manifest is None else manifest.commit] = name
        return found

    def has_leftovers(self) -> bool:
        """Say whether there is anything for `tidy` to do."""
        return bool(self._leftovers() or self._marked())

    def _leftovers(self) -> list[tuple[str, Leftover]]:
        return [
            (name, leftover)
            for name in filesystem.names(self.root)
            if (leftover := parse_leftover(name)) and not self._is_in_flight(name)
        ]

    def _marked(self) -> list[Path]:
        return [
            self.root / name
            for name in filesystem.names(self.root)
            if name.startswith(PREFIX)
            and os.path.lexists(self.root / name / UNFINISHED)
            and not self._is_in_flight(name)
        ]

    def _is_in_flight(self, name: str) -> bool:
        return os.path.realpath(self.root / name) in _in_flight

    def _finish_marked(self) -> None:
        for path in self._marked():
            if is_unfinished(path):
                remove_marked(path)
            else:
                filesystem.unlink(path / UNFINISHED)

    def _put_back(self, leftover: Leftover, name: str) -> bool:
        """Put one that was to replace another, or stepped aside for it, in its place."""
        path, final = self.root / name, self.root / leftover.checkpoint
        if leftover.kind == NEW and has_manifest(path):
            ByManifest(self.root, self.run).replace(path, final)
            return True
        if leftover.kind != OLD or filesystem.is_directory(final):
            return False
        filesystem.rename(path, final)
        logger.warning("put %s back: a run ended while it was replacing it", final)
        return True
