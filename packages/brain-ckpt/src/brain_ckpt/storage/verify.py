"""Compare a checkpoint, or one file of it, with what was written.

Files that are not in the manifest are not part of the checkpoint: they are neither read nor
compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain_ckpt.errors import CheckpointDamagedError, UnsafeCheckpointError
from brain_ckpt.storage.checksum import first_damage
from brain_ckpt.storage.file_format import find_damage
from brain_ckpt.storage.layout import META_NAME, SHARDS_DIRECTORY
from brain_ckpt.storage.opened import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from brain_ckpt.retention.checkpoint import Checkpoint
    from brain_ckpt.storage.manifest import Manifest
    from brain_ckpt.storage.opened import OpenedCheckpoint


def verify(checkpoint: Checkpoint) -> Manifest | None:
    """Compare all files of a checkpoint with what was written; see `verify_opened`."""
    with open_checkpoint(checkpoint.path, hold=True) as opened:
        opened.check_same(checkpoint)
        verify_opened(opened)
        return opened.manifest


def verify_opened(
    opened: OpenedCheckpoint,
    required: Collection[str] = (),
    *,
    trusted: bool = False,
    checked: Collection[str] = (),
    wanted: Collection[str] | None = None,
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
    wanted : collection of str, optional
        The recoverables whose files are compared in a checkpoint without a manifest, which does
        not tell its own files from foreign ones; by default all are.

    Raises
    ------
    CheckpointDamagedError
        If a file differs from what was written; the text names the file.
    """
    path, manifest = opened.checkpoint.path, opened.manifest
    if opened.problem is not None:
        raise opened.problem
    if manifest is None:
        _verify_without_manifest(opened, required, wanted, trusted=trusted)
        return
    for name in manifest.files:
        _refuse_links(opened.directory, name)
    unchecked = [(name, digest) for name, digest in manifest.files.items() if name not in checked]
    damage = first_damage(opened.locate, unchecked, manifest.algorithm)
    if damage is None and META_NAME not in manifest.files:
        damage = f"{META_NAME} is not in the manifest"
    if damage is not None:
        raise CheckpointDamagedError(f"{path} is damaged: {damage}")


def verify_state_file(opened: OpenedCheckpoint, name: str) -> None:
    """Compare one state file of a checkpoint, and the shards, with what was written.

    Parameters
    ----------
    opened : OpenedCheckpoint
        The checkpoint.
    name : str
        The name of the file.

    Raises
    ------
    CheckpointDamagedError
        If the file, or a shard of the checkpoint, differs from what was written.
    """
    manifest = opened.manifest
    if opened.problem is not None:
        raise opened.problem
    if manifest is None or name not in manifest.files:
        verify_file(opened.locate(name), opened.checkpoint.path / name)
        return
    shards = [other for other in manifest.files if other.startswith(SHARDS_DIRECTORY + "/")]
    for shard in shards:
        _refuse_links(opened.directory, shard)
    files = [(one, manifest.files[one]) for one in (name, *shards)]
    damage = first_damage(opened.locate, files, manifest.algorithm)
    if damage is not None:
        raise _damaged_file(opened.checkpoint.path / name, damage)


def verify_file(file: Path, shown: Path | None = None) -> None:
    """Compare a state file with its own checksums; it can have none.

    Parameters
    ----------
    file : Path
        The file, not a link.
    shown : Path, optional
        Its path in errors.

    Raises
    ------
    CheckpointDamagedError
        If it differs from what was written.
    """
    shown = file if shown is None else shown
    damage = find_damage(file, shown.name, trusted=True)
    if damage is not None:
        raise _damaged_file(shown, damage)


def _damaged_file(file: Path, damage: str) -> CheckpointDamagedError:
    return CheckpointDamagedError(f"{file} must be intact, got damage: {damage}")


def _verify_without_manifest(
    opened: OpenedCheckpoint,
    required: Collection[str],
    wanted: Collection[str] | None,
    *,
    trusted: bool,
) -> None:
    checkpoint = opened.checkpoint
    for name, file in checkpoint.paramfiles.items():
        if wanted is not None and name not in wanted:
            continue
        damage = find_damage(opened.file(file), file.name, trusted=trusted)
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
