"""One file of a checkpoint, wherever it lies: whether it is what was written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain_ckpt.errors import CheckpointDamagedError
from brain_ckpt.recoverables.serialization import own_damage
from brain_ckpt.storage import filesystem
from brain_ckpt.storage.checksum import first_damage
from brain_ckpt.storage.layout import SHARDS_DIRECTORY
from brain_ckpt.storage.listing import read_manifest

if TYPE_CHECKING:
    from pathlib import Path


def check_file(file: Path) -> None:
    """Compare a file with the manifest beside it; without one, with its own checksums.

    Parameters
    ----------
    file : Path
        Not a link.  One that was copied out of its checkpoint may have no checksums at all; then
        there is nothing to compare it with.

    Raises
    ------
    CheckpointDamagedError
        If one bit is not as it was written.
    """
    directory = file.parent
    manifest = read_manifest(directory)
    if manifest is None:
        damage = own_damage(file, trusted=True)
    elif file.name not in manifest.files:
        damage = f"{file.name} is there, and the manifest does not know it"
    else:
        shards = [name for name in manifest.files if name.startswith(SHARDS_DIRECTORY + "/")]
        wanted = [(name, manifest.files[name]) for name in (file.name, *shards)]
        damage = first_damage(directory, wanted, manifest.algorithm)
        if damage is None and shards and not filesystem.is_directory(directory / SHARDS_DIRECTORY):
            damage = f"{SHARDS_DIRECTORY} is not a directory of its own"
    if damage is not None:
        raise CheckpointDamagedError(f"{file} has to be intact, got damage: {damage}")
