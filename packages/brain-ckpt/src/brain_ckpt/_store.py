"""A directory of checkpoints: what is listed, how one appears, and how one goes.

A checkpoint appears by the renaming of a finished directory and goes by another, so that at any
instant each one is there as a whole or not at all.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from brain_ckpt import _fs
from brain_ckpt._checksum import Algorithm, FileDigest, first_damage
from brain_ckpt._errors import CheckpointDamagedError, CheckpointError, UnsafeCheckpointError
from brain_ckpt._layout import (
    META_NAME,
    OLD,
    PARAMFILE_EXT,
    PREFIX,
    TEMPORARY,
    Leftover,
    old_name,
    parse_leftover,
    temporary_name,
    trash_name,
)
from brain_ckpt._manifest import (
    MANIFEST_LIMIT_BYTES,
    MANIFEST_NAME,
    Manifest,
    dump_manifest,
    load_manifest,
)
from brain_ckpt._meta import META_LIMIT_BYTES, load_meta
from brain_ckpt._retention import Checkpoint, ckpt_recency
from brain_ckpt._stream import Stream, adopt_file, write_file
from brain_ckpt._tensor_files import own_damage

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)


# What this process is writing, through whichever checkpointer: never swept.
_in_flight: set[str] = set()


class Listing(NamedTuple):
    """What is in a directory of checkpoints.

    Parameters
    ----------
    checkpoints : list of Checkpoint
        From the oldest to the newest; of equal times by `seq`.
    unreadable : dict of Path to str
        Directories that are checkpoints and cannot be listed, with the reason.
    seq : int
        The highest that was seen; 0 where there is none.
    """

    checkpoints: list[Checkpoint]
    unreadable: dict[Path, str]
    seq: int


@dataclass
class Staging:
    """A checkpoint that is being written.

    Parameters
    ----------
    path : Path
        The temporary directory.
    final : Path
        Where it will be published.
    files : dict of str to FileDigest
        What was written so far, by name below the directory.
    """

    path: Path
    final: Path
    files: dict[str, FileDigest] = field(default_factory=dict)


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
    """

    def __init__(self, root: Path, run: str, algorithm: Algorithm = "crc32") -> None:
        self.root = root
        self.run = run
        self.algorithm = algorithm
        self._number = 0

    def listing(self) -> Listing:
        """List what is published; a reader needs no lock and changes nothing."""
        found: list[tuple[float, int, Checkpoint]] = []
        unreadable: dict[Path, str] = {}
        seq = 0
        for path in self._published():
            try:
                checkpoint = read_checkpoint(path)
            except _GoneError:
                continue
            except (CheckpointError, OSError) as error:
                unreadable[path] = str(error)
                continue
            number = _read_seq(path)
            seq = max(seq, number)
            found.append((ckpt_recency(checkpoint), number, checkpoint))
        found.sort(key=lambda entry: entry[:2])
        return Listing([entry[2] for entry in found], unreadable, seq)

    def next_temporary_name(self, name: str) -> str:
        """Return a new name for a temporary directory."""
        self._number += 1
        return temporary_name(name, self.run, self._number)

    def stage(self, temporary: str, name: str) -> Staging:
        """Make a temporary directory for a checkpoint that is to have a name."""
        path = self.root / temporary
        _in_flight.add(os.path.realpath(path))
        _fs.mkdir(path)
        return Staging(path, self.root / name)

    def subdirectory(self, staging: Staging, name: str) -> Path:
        """Make the directories of a path below a temporary directory, where they are not there."""
        path = staging.path
        for part in name.split("/"):
            path = path / part
            if not _fs.is_directory(path):
                _fs.mkdir(path)
        return path

    def write(self, staging: Staging, name: str, content: bytes) -> None:
        """Write a small file into a temporary directory."""

        def produce(stream: Stream) -> None:
            stream.write(content)

        staging.files[name] = write_file(staging.path / name, produce, self.algorithm)

    def sweep_in(self, staging: Staging) -> None:
        """Take in what hooks have written past us, and refuse links."""
        for name, directory in _fs.walk(staging.path):
            path = staging.path / name
            if path.is_symlink():
                raise CheckpointError(
                    f"a checkpoint holds files and directories of its own, got the link {path}; "
                    f"have the hook write or copy the file itself"
                )
            if not directory and name not in staging.files:
                staging.files[name] = adopt_file(path, self.algorithm)

    def seal(self, staging: Staging, meta: bytes, manifest: Manifest) -> None:
        """Write the last two files, and have the disk confirm the directory."""
        self.write(staging, META_NAME, meta)
        _fs_files = dict(staging.files)
        content = dump_manifest(
            Manifest(**{**vars(manifest), "files": _fs_files, "algorithm": self.algorithm})
        )
        self.write(staging, MANIFEST_NAME, content)
        for name, directory in _fs.walk(staging.path):
            if directory:
                _fs.fsync_directory(staging.path / name)
        _fs.fsync_directory(staging.path)

    def publish(self, staging: Staging) -> None:
        """Give a sealed directory its name; once this returns, nothing takes it away again.

        A checkpoint that has the name steps aside first, and goes when the new one is there.
        """
        final = staging.final
        aside = self.root / old_name(final.name, self.run)
        replaced = _fs.is_directory(final)
        if replaced:
            _fs.rename(final, aside)
        try:
            _fs.rename(staging.path, final)
        except BaseException:
            if replaced:
                with contextlib.suppress(OSError):
                    _fs.rename(aside, final)
            raise
        _in_flight.discard(os.path.realpath(staging.path))
        _fs.fsync_directory(self.root)

    def discard(self, staging: Staging) -> None:
        """Delete a temporary directory; what cannot be deleted now is swept later."""
        _in_flight.discard(os.path.realpath(staging.path))
        with contextlib.suppress(OSError):
            _fs.remove_tree(staging.path)

    def delete(self, paths: list[Path]) -> None:
        """Delete checkpoints, each as a whole."""
        trashed = []
        for path in paths:
            trash = self.root / trash_name(path.name, self.run)
            if _fs.is_directory(trash):
                _fs.remove_tree(trash)
            _fs.rename(path, trash)
            trashed.append(trash)
        if trashed:
            _fs.fsync_directory(self.root)
        for trash in trashed:
            _fs.remove_tree(trash)

    def tidy(self) -> None:
        """Put back what a replacement left aside, and delete what dead runs left unfinished.

        Only for who holds the lock: nobody else's run is alive then.
        """
        leftovers = [
            (name, leftover)
            for name in _fs.names(self.root)
            if (leftover := parse_leftover(name)) and not self._is_in_flight(name)
        ]
        doomed = [
            self.root / name for name, leftover in leftovers if not self._put_back(leftover, name)
        ]
        if any(leftover.kind == OLD for _, leftover in leftovers):
            # What stepped aside may only go once its successor's name is on the disk.
            _fs.fsync_directory(self.root)
        for path in doomed:
            _fs.remove_tree(path)

    def prepared(self) -> dict[str, Staging]:
        """Return what dead runs have sealed and not published, by commit."""
        found = {}
        for name in _fs.names(self.root):
            leftover = parse_leftover(name)
            if leftover is None or leftover.kind != TEMPORARY or self._is_in_flight(name):
                continue
            path = self.root / name
            try:
                manifest = verify(read_checkpoint(path))
            except (CheckpointError, OSError, _GoneError):
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
        return any(
            parse_leftover(name) and not self._is_in_flight(name) for name in _fs.names(self.root)
        )

    def _is_in_flight(self, name: str) -> bool:
        return os.path.realpath(self.root / name) in _in_flight

    def _put_back(self, leftover: Leftover, name: str) -> bool:
        final = self.root / leftover.checkpoint
        if leftover.kind != OLD or _fs.is_directory(final):
            return False
        _fs.rename(self.root / name, final)
        logger.warning("put %s back: a run ended while it was replacing it", final)
        return True

    def _published(self) -> list[Path]:
        names = _fs.names(self.root)
        paths = [self.root / name for name in names if name.startswith(PREFIX)]
        for name in names:
            leftover = parse_leftover(name)
            if leftover and leftover.kind == OLD and leftover.checkpoint not in names:
                paths.append(self.root / name)
        return [path for path in paths if path.is_dir() and looks_like_checkpoint(path)]


class _GoneError(Exception):
    """A checkpoint was deleted while it was looked at."""


def read_manifest(path: Path) -> Manifest | None:
    """Read the manifest of a checkpoint; None if SpeechBrain wrote it."""
    file = path / MANIFEST_NAME
    try:
        content = _fs.read(file, MANIFEST_LIMIT_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointDamagedError(f"{file} cannot be read: {error.strerror}") from error
    return load_manifest(content, str(file))


def verify(
    checkpoint: Checkpoint, required: list[str] | None = None, *, trusted: bool = False
) -> Manifest | None:
    """Compare a whole checkpoint with what was written.

    Parameters
    ----------
    checkpoint : Checkpoint
        Which one.
    required : list of str, optional
        Recoverables that a checkpoint without a manifest has to hold.
    trusted : bool
        Whether tensors that have no checksum anywhere are let through.

    Returns
    -------
    Manifest or None
        None if SpeechBrain wrote it, which leaves no manifest; then each file's own checksums
        were looked at.

    Raises
    ------
    CheckpointDamagedError
        If one bit is not as it was written; the text names the file.
    """
    path = checkpoint.path
    manifest = read_manifest(path)
    if manifest is None:
        _verify_without_manifest(checkpoint, required or [], trusted=trusted)
        return None
    for name in manifest.files:
        _refuse_links(path, name)
    damage = first_damage(path, list(manifest.files.items()), manifest.algorithm)
    if damage is None and META_NAME not in manifest.files:
        damage = f"{META_NAME} is not in the manifest"
    if damage is not None:
        raise CheckpointDamagedError(f"{path} is damaged: {damage}")
    extra = [
        file.name for file in checkpoint.paramfiles.values()
        if file.parent == path and file.name not in manifest.files
    ]  # fmt: skip
    if extra:
        raise CheckpointDamagedError(
            f"{path} is damaged: {extra[0]} is there, and the manifest does not know it"
        )
    return manifest


def read_checkpoint(path: Path) -> Checkpoint:
    """Read what a checkpoint says of itself, and which files it has; no file is verified."""
    file = path / META_NAME
    try:
        content = _fs.read(file, META_LIMIT_BYTES)
    except FileNotFoundError:
        if not path.is_dir():
            raise _GoneError from None
        raise CheckpointDamagedError(f"{path} has no {META_NAME}") from None
    meta = load_meta(content, str(file))
    paramfiles = {
        name.removesuffix(PARAMFILE_EXT): path / name
        for name in _fs.names(path)
        if name.endswith(PARAMFILE_EXT) and not os.path.isdir(path / name)
    }
    return Checkpoint(path, meta, paramfiles)


def _verify_without_manifest(checkpoint: Checkpoint, required: list[str], *, trusted: bool) -> None:
    for file in checkpoint.paramfiles.values():
        damage = own_damage(file, trusted=trusted)
        if damage is not None:
            raise CheckpointDamagedError(f"{checkpoint.path} is damaged: {damage}")
    missing = [name for name in required if name not in checkpoint.paramfiles]
    if missing:
        raise CheckpointDamagedError(
            f"{checkpoint.path} is not whole: it has no file for {', '.join(map(repr, missing))}"
        )


def _refuse_links(path: Path, name: str) -> None:
    # O_NOFOLLOW guards the last part of a path; the directories before it are looked at here.
    for parent in (path / name).parents:
        if parent == path:
            return
        if parent.is_symlink():
            raise UnsafeCheckpointError(f"{parent} is a link, and would lead out of {path}")


def looks_like_checkpoint(path: Path) -> bool:
    """Say whether a directory is, or was once, a checkpoint."""
    # SpeechBrain writes CKPT.yaml first, so that tensors without it were a checkpoint once.
    if (path / META_NAME).exists() or (path / MANIFEST_NAME).exists():
        return True
    return any(name.endswith(PARAMFILE_EXT) for name in _fs.names(path))


def _read_seq(path: Path) -> int:
    try:
        manifest = read_manifest(path)
    except CheckpointError:
        return 0
    return 0 if manifest is None else manifest.seq
