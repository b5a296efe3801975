"""Compare a checkpoint, or one file of it, with what was written.

Files that are not in the manifest are not part of the checkpoint: they are neither read nor
compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain_ckpt.errors import CheckpointDamagedError, UnsafeCheckpointError
from brain_ckpt.storage import filesystem
from brain_ckpt.storage.checksum import first_damage
from brain_ckpt.storage.file_format import find_damage
from brain_ckpt.storage.layout import META_NAME, SHARDS_DIRECTORY
from brain_ckpt.storage.opened import open_checkpoint, read_manifest

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from brain_ckpt.retention.checkpoint import Checkpoint
    from brain_ckpt.storage.manifest import Manifest
    from brain_ckpt.storage.opened import OpenedCheckpoint


def verify(checkpoint: Checkpoint) -> Manifest | None:
    """Compare all files of a checkpoint with what was written; see `verify_opened`."""
    with open_checkpoint(checkpoint.path) as opened:
        opened.check_same(checkpoint)
        verify_opened(opened)
        return opened.manifest


def verify_opened(
    opened: OpenedCheckpoint,
    required: Collection[str] = (),
    *,
    trusted: bool = False,
    checked: Collection[str] = (),
) -> None:
    """Compare all files of an opened checkpoint with what was written.

    Parameters
    ----------
    opened : OpenedCheckpoint
        The checkpoint.  Without a manifest, as SpeechBrain writes it, its files are compared with
        their own checksums.
    required : collection of str
        The recoverables that a checkpoint without a manifest must hold.
    trusted : bool
        Whether to accept state files that have no checksums at all.
    checked : collection of str
        Names of files that were already compared.

    Raises
    ------
    CheckpointDamagedError
        If a file differs from what was written; the text names the file.
    """
    path, manifest = opened.checkpoint.path, opened.manifest
    if opened.problem is not None:
        raise opened.problem
    if manifest is None:
        _verify_without_manifest(opened, required, trusted=trusted)
        return
    for name in manifest.files:
        _refuse_links(opened.directory, name)
    unchecked = [(name, digest) for name, digest in manifest.files.items() if name not in checked]
    damage = first_damage(opened.directory, unchecked, manifest.algorithm)
    if damage is None and META_NAME not in manifest.files:
        damage = f"{META_NAME} is not in the manifest"
    if damage is not None:
        raise CheckpointDamagedError(f"{path} is damaged: {damage}")


def verify_file(file: Path) -> None:
    """Compare one file with the manifest of its directory, or with its own checksums.

    Parameters
    ----------
    file : Path
        A state file, not a link.  A file that is not part of a checkpoint can have no checksums at
        all; then there is nothing to compare it with.

    Raises
    ------
    CheckpointDamagedError
        If the file, or a shard of its checkpoint, differs from what was written.
    """
    directory = file.parent
    manifest = read_manifest(directory)
    if manifest is None or file.name not in manifest.files:
        damage = find_damage(file, trusted=True)
    else:
        shards = [name for name in manifest.files if name.startswith(SHARDS_DIRECTORY + "/")]
        files = [(name, manifest.files[name]) for name in (file.name, *shards)]
        damage = first_damage(directory, files, manifest.algorithm)
        if damage is None and shards and not filesystem.is_directory(directory / SHARDS_DIRECTORY):
            damage = f"{SHARDS_DIRECTORY} is a link"
    if damage is not None:
        raise CheckpointDamagedError(f"{file} must be intact, got damage: {damage}")


def _verify_without_manifest(
    opened: OpenedCheckpoint, required: Collection[str], *, trusted: bool
) -> None:
    checkpoint = opened.checkpoint
    for file in checkpoint.paramfiles.values():
        damage = find_damage(opened.file(file), trusted=trusted)
        if damage is not None:
            raise CheckpointDamagedError(f"{checkpoint.path} is damaged: {damage}")
    missing = [name for name in required if name not in checkpoint.paramfiles]
    if missing:
        raise CheckpointDamagedError(
            f"{checkpoint.path} is incomplete: it has no file for {', '.join(map(repr, missing))}"
        )


def _refuse_links(directory: Path, name: str) -> None:
    # O_NOFOLLOW guards the last part of a path; the directories before it are checked here.
    for parent in (directory / name).parents:
        if parent == directory:
            return
        if parent.is_symlink():
            raise UnsafeCheckpointError(f"{parent} is a link that leads out of {directory}")
