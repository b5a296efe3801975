"""Comparing a whole checkpoint with what was written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain_ckpt.errors import CheckpointDamagedError, UnsafeCheckpointError
from brain_ckpt.recoverables.serialization import own_damage
from brain_ckpt.storage.checksum import first_damage
from brain_ckpt.storage.layout import META_NAME
from brain_ckpt.storage.listing import read_manifest

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from brain_ckpt.retention.policies import Checkpoint
    from brain_ckpt.storage.manifest import Manifest


def verify(
    checkpoint: Checkpoint,
    required: list[str] | None = None,
    *,
    trusted: bool = False,
    checked: Collection[str] = (),
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
    checked : collection of str
        Names of files that were compared already, while they were read.

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
    left = [(name, digest) for name, digest in manifest.files.items() if name not in checked]
    damage = first_damage(path, left, manifest.algorithm)
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
