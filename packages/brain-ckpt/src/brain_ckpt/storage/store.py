"""Write, publish, delete and clean up in one directory of checkpoints, with its lock held."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from brain_ckpt.errors import CheckpointError
from brain_ckpt.retention.checkpoint import ckpt_recency
from brain_ckpt.storage import filesystem
from brain_ckpt.storage.commit import (
    CommitProtocol,
    ManifestCommit,
    RenameCommit,
    Staging,
    remove_marked,
    write_bytes,
)
from brain_ckpt.storage.known import KnownCheckpoints
from brain_ckpt.storage.layout import (
    META_NAME,
    NEW,
    OLD,
    PREFIX,
    TEMPORARY,
    UNFINISHED,
    Leftover,
    is_foreign,
    new_name,
    old_name,
    parse_leftover,
)
from brain_ckpt.storage.listing import (
    Listing,
    has_manifest,
    is_unfinished,
    list_published,
    read_all,
    read_checkpoint,
)
from brain_ckpt.storage.manifest import MANIFEST_NAME, Manifest, dump_manifest
from brain_ckpt.storage.meta import dump_meta
from brain_ckpt.storage.stream import digest_external_file
from brain_ckpt.storage.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from brain_ckpt.storage.checksum import Algorithm

logger = logging.getLogger(__name__)

# The directories that this process writes, through any checkpointer; a cleanup skips them.
_staged_paths: set[str] = set()


class Newest(NamedTuple):
    """The newest time, in seconds, and the highest number of the checkpoints of a directory."""

    time_s: float
    seq: int


class Store:
    """The operations on one directory of checkpoints.

    Parameters
    ----------
    root : Path
        The directory, which exists.
    run_id : str
        The identity of this run, part of the names of its unfinished directories.
    algorithm : str
        The checksum.
    renames : bool
        Whether the file system renames a directory atomically.
    """

    def __init__(
        self, root: Path, run_id: str, algorithm: Algorithm = "crc32", *, renames: bool = True
    ) -> None:
        self.root = root
        self.run_id = run_id
        self.algorithm = algorithm
        self._protocol: CommitProtocol = (RenameCommit if renames else ManifestCommit)(root, run_id)
        self._renames = renames
        self._number = 0
        self._known = KnownCheckpoints()
        # While the lock is held: the inodes of the checkpoints that `newest` has counted.
        self._counted: dict[str, int] = {}
        self._newest = Newest(0.0, 0)

    def listing(self) -> Listing:
        """List the published checkpoints; needs no lock and changes nothing."""
        return list_published(self.root, self._known)

    def newest(self, inodes: Mapping[str, int]) -> Newest:
        """Return the newest time and the highest number of all checkpoints; the lock is held.

        A checkpoint is read once.  Only a run that holds the lock replaces one, and its directory
        then has another inode, unless directories are not renamed.

        Parameters
        ----------
        inodes : mapping of str to int
            The names in the directory, as `clean_up` returns them.
        """
        uncounted = self._uncounted(inodes)
        if not self._renames or any(map(parse_leftover, uncounted)):
            return self._count(self.listing())
        paths = [self.root / name for name in uncounted if name.startswith(PREFIX)]
        listing, gone = read_all(paths, self._known)
        newest = self._count(self.listing() if gone else listing)
        for name in [name for name, old in self._counted.items() if inodes.get(name) != old]:
            del self._counted[name]  # it is deleted, or replaced
        names = (checkpoint.path.name for checkpoint in listing.checkpoints)
        self._counted.update((name, inodes[name]) for name in names)
        return newest

    def forget(self) -> None:
        """Forget which checkpoints `newest` has counted, since the lock is released."""
        self._counted = {}

    def _count(self, listing: Listing) -> Newest:
        times = map(ckpt_recency, listing.checkpoints)
        self._newest = Newest(
            max([self._newest.time_s, *times]), max(self._newest.seq, listing.seq)
        )
        return self._newest

    def staging_name(self, name: str, *, replaces: bool) -> str:
        """Return the name of the directory to write a checkpoint in."""
        self._number += 1
        return self._protocol.staging_name(name, self._number, replaces=replaces)

    def stage(self, directory: str, name: str) -> Staging:
        """Make the directory for a checkpoint of a name."""
        path = self.root / directory
        _staged_paths.add(os.path.realpath(path))
        staging = Staging(path, self.root / name)
        try:
            self._protocol.open(path)
        except FileExistsError:
            _staged_paths.discard(os.path.realpath(path))
            raise
        except BaseException:
            self.discard(staging)
            raise
        return staging

    def make_subdirectory(self, staging: Staging, name: str) -> Path:
        """Make a directory below a staged checkpoint, with its missing parents."""
        path = staging.path
        for part in name.split("/"):
            path = path / part
            if not filesystem.is_directory(path):
                filesystem.mkdir(path)
        return path

    def write(self, staging: Staging, name: str, content: bytes) -> None:
        """Write a small file of a staged checkpoint."""
        staging.files[name] = write_bytes(staging.path / name, content, self.algorithm)

    def add_external_files(self, staging: Staging) -> None:
        """Add the files that hooks have written to a staged checkpoint; links are refused.

        Files that file systems, desktops and editors leave there are not added.
        """
        for name, directory in filesystem.walk(staging.path):
            path = staging.path / name
            if is_foreign(name):
                continue
            if path.is_symlink():
                raise CheckpointError(
                    f"a checkpoint may hold files and directories only, got the link {path}; "
                    f"write or copy the file itself in the hook"
                )
            if not directory and name not in staging.files and name != UNFINISHED:
                staging.files[name] = digest_external_file(path, self.algorithm)

    def seal(self, staging: Staging, meta: Mapping[str, Any], manifest: Manifest) -> None:
        """Write the meta file and flush everything to the disk, ready to publish."""
        content, arrays = dump_meta(meta)
        file = staging.path / META_NAME
        staging.files[META_NAME] = self._protocol.write_meta(file, content, self.algorithm)
        staging.manifest = dump_manifest(
            dataclasses.replace(manifest, files=dict(staging.files), meta_arrays=arrays)
        )
        self._protocol.seal(staging)

    def publish(self, staging: Staging) -> None:
        """Publish a sealed checkpoint durably."""
        self._protocol.publish(staging)
        _staged_paths.discard(os.path.realpath(staging.path))

    def adopt(self, path: Path, name: str, manifest: bytes) -> None:
        """Publish a directory with all files of a checkpoint, as another place holds them."""
        staging = Staging(path, self.root / name, manifest=manifest)
        filesystem.unlink(path / MANIFEST_NAME)  # of an earlier attempt
        self._protocol.seal(staging)
        self.publish(staging)

    def discard(self, staging: Staging) -> None:
        """Delete a staged checkpoint; files that cannot be deleted now are cleaned up later."""
        _staged_paths.discard(os.path.realpath(staging.path))
        with contextlib.suppress(OSError):
            self._protocol.discard(staging.path)

    def delete(self, paths: list[Path]) -> None:
        """Delete checkpoints, each atomically."""
        self._protocol.delete(paths)

    def move(self, source: Path, target: Path) -> None:
        """Move a checkpoint to a folder below the directory; killed, it is in one of them."""
        if not filesystem.is_directory(target.parent):
            filesystem.mkdir(target.parent)
        self._protocol.move(source, target)

    def clean_up_replaced(self, name: str) -> None:
        """Clean up if the publication of a checkpoint of this name has left another one."""
        left = (kind(name, self.run_id) for kind in (old_name, new_name))
        if any(os.path.lexists(self.root / each) for each in left):
            self.clean_up()

    def clean_up(self) -> dict[str, int]:
        """Restore replaced checkpoints and delete unfinished directories of ended runs.

        The caller holds the lock, so no other run is alive.

        Returns
        -------
        dict
            The names in the directory, and their inodes.
        """
        inodes = filesystem.inodes(self.root)
        names = self._uncounted(inodes)
        marked, leftovers = self._marked(names), self._leftovers(names)
        if not marked and not leftovers:
            return inodes
        self._finish(marked)
        to_remove = [
            self.root / name for name, leftover in leftovers if not self._recover(leftover, name)
        ]
        if any(leftover.kind == OLD for _, leftover in leftovers):
            # A replaced checkpoint may go only once the rename of its successor is durable.
            filesystem.fsync_directory(self.root)
        for path in to_remove:
            is_marked = os.path.lexists(path / UNFINISHED)
            remove = remove_marked if is_marked else filesystem.remove_tree
            remove(path)
        return filesystem.inodes(self.root)

    def prepared_commits(self) -> dict[str, Staging]:
        """Return the sealed, unpublished checkpoints of ended runs by commit id."""
        prepared = {}
        for name, leftover in self._leftovers(filesystem.names(self.root)):
            if leftover.kind != TEMPORARY:
                continue
            path = self.root / name
            try:
                manifest = verify(read_checkpoint(path))
            except (CheckpointError, OSError):
                continue
            if manifest is not None:
                prepared[manifest.commit_id] = Staging(path, self.root / leftover.checkpoint)
        return prepared

    def published_commits(self) -> dict[str, str]:
        """Return the names of published checkpoints by commit id; SpeechBrain's by name."""
        published = {}
        for checkpoint in self.listing().checkpoints:
            name = checkpoint.path.name
            published[checkpoint.commit_id or name] = name
        return published

    def has_leftovers(self) -> bool:
        """Return whether `clean_up` has anything to do."""
        names = self._uncounted(filesystem.inodes(self.root))
        return bool(self._leftovers(names) or self._marked(names))

    def _uncounted(self, inodes: Mapping[str, int]) -> list[str]:
        """Return the names but those of the checkpoints that `newest` has counted."""
        counted = self._counted
        return sorted([name for name, inode in inodes.items() if counted.get(name) != inode])

    def _leftovers(self, names: Iterable[str]) -> list[tuple[str, Leftover]]:
        return [
            (name, leftover)
            for name in names
            if (leftover := parse_leftover(name)) and not self._is_staged(name)
        ]

    def _marked(self, names: Iterable[str]) -> list[Path]:
        # A checkpoint that was counted had no mark, and a run that renames leaves none.
        return [
            self.root / name
            for name in names
            if name.startswith(PREFIX)
            and os.path.lexists(self.root / name / UNFINISHED)
            and not self._is_staged(name)
        ]

    def _is_staged(self, name: str) -> bool:
        return os.path.realpath(self.root / name) in _staged_paths

    def _finish(self, marked: list[Path]) -> None:
        for path in marked:
            if is_unfinished(path):
                remove_marked(path)
            else:
                filesystem.unlink(path / UNFINISHED)

    def _recover(self, leftover: Leftover, name: str) -> bool:
        """Complete a replacement, or undo it; return whether the directory is still needed."""
        path, final = self.root / name, self.root / leftover.checkpoint
        if leftover.kind == NEW and has_manifest(path):
            ManifestCommit(self.root, self.run_id).replace(path, final)
            return True
        if leftover.kind != OLD or filesystem.is_directory(final):
            return False
        filesystem.rename(path, final)
        logger.warning("Restored %s: a run ended while it was replacing it", final)
        return True
