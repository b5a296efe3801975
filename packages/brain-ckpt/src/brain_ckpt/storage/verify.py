"""Compare a checkpoint, or one file of it, with what was written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain_ckpt.errors import CheckpointDamagedError, UnsafeCheckpointError
from brain_ckpt.storage import filesystem
from brain_ckpt.storage.checksum import first_damage
from brain_ckpt.storage.file_format import find_damage
from brain_ckpt.storage.layout import META_NAME, SHARDS_DIRECTORY
from brain_ckpt.storage.listing import read_manifest

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from brain_ckpt.retention.checkpoint import Checkpoint
    from brain_ckpt.storage.manifest import Manifest


def verify(
    checkpoint: Checkpoint,
    required: list[str] | None = None,
    *,
    trusted: bool = False,
    checked: Collection[str] = (),
) -> Manifest | None:
    """Compare all files of a checkpoint with what was written.

    Parameters
    ----------
    checkpoint : Checkpoint
        The checkpoint.
    required : list of str, optional
        The recoverables that a checkpoint without a manifest must hold.
    trusted : bool
        Whether to accept state files that have no checksums at all.
    checked : collection of str
        Names of files that were already compared.

    Returns
    -------
    Manifest or None
        None for a checkpoint of SpeechBrain's, which has no manifest; its files are compared with
        their own checksums.

    Raises
    ------
    CheckpointDamagedError
        If a file differs from what was written; the text names the file.
    """
    path = checkpoint.path
    manifest = read_manifest(path)
    if manifest is None:
        _verify_without_manifest(checkpoint, required or [], trusted=trusted)
        return None
    for name in manifest.files:
        _refuse_links(path, name)
    unchecked = [(name, digest) for name, digest in manifest.files.items() if name not in checked]
    damage = first_damage(path, unchecked, manifest.algorithm)
    if damage is None and META_NAME not in manifest.files:
        damage = f"{META_NAME} is not in the manifest"
    if damage is not None:
        raise CheckpointDamagedError(f"{path} is damaged: {damage}")
    unknown = [
        file.name
        for file in checkpoint.paramfiles.values()
        if file.parent == path and file.name not in manifest.files
    ]
    if unknown:
        raise CheckpointDamagedError(f"{path} is damaged: {unknown[0]} is not in the manifest")
    return manifest


def verify_file(file: Path) -> None:
    """Compare one file with the manifest of its directory, or with its own checksums.

    Parameters
    ----------
    file : Path
        A state file, not a link.  A file that was copied out of its checkpoint can have no
        checksums at all; then there is nothing to compare it with.

    Raises
    ------
    CheckpointDamagedError
        If the file, or a shard of its checkpoint, differs from what was written.
    """
    directory = file.parent
    manifest = read_manifest(directory)
    if manifest is None:
        damage = find_damage(file, trusted=True)
    elif file.name not in manifest.files:
        damage = f"{file.name} is not in the manifest"
    else:
        shards = [name for name in manifest.files if name.startswith(SHARDS_DIRECTORY + "/")]
        files = [(name, manifest.files[name]) for name in (file.name, *shards)]
        damage = first_damage(directory, files, manifest.algorithm)
        if damage is None and shards and not filesystem.is_directory(directory / SHARDS_DIRECTORY):
            damage = f"{SHARDS_DIRECTORY} is a link"
    if damage is not None:
        raise CheckpointDamagedError(f"{file} must be intact, got damage: {damage}")


def _verify_without_manifest(checkpoint: Checkpoint, required: list[str], *, trusted: bool) -> None:
    for file in checkpoint.paramfiles.values():
        damage = find_damage(file, trusted=trusted)
        if damage is not None:
            raise CheckpointDamagedError(f"{checkpoint.path} is damaged: {damage}")
    missing = [name for name in required if name not in checkpoint.paramfiles]
    if missing:
        raise CheckpointDamagedError(
            f"{checkpoint.path} is incomplete: it has no file for {', '.join(map(repr, missing))}"
        )


def _refuse_links(path: Path, name: str) -> None:
    # O_NOFOLLOW guards the last part of a path; the directories before it are checked here.
    for parent in (path / name).parents:
        if parent == path:
            return
        if parent.is_symlink():
            raise UnsafeCheckpointError(f"{parent} is a link that leads out of {path}")
