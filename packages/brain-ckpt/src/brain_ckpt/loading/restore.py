"""One load: everything verified and read before the first object is touched."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from brain_ckpt.errors import CheckpointMismatchError
from brain_ckpt.loading.checked_read import LEAST_BYTES, read_checked
from brain_ckpt.loading.shards import assemble
from brain_ckpt.recoverables.serialization import read_state, respell
from brain_ckpt.recoverables.states import check_state, set_state
from brain_ckpt.storage.layout import RANKS_DIRECTORY, SHARDS_DIRECTORY
from brain_ckpt.storage.listing import read_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from brain_ckpt.retention.policies import Checkpoint
    from brain_ckpt.saving.files import Item

logger = logging.getLogger(__name__)


class Step(NamedTuple):
    """What puts one object back."""

    name: str
    apply: Callable[[], Any]


def required_names(items: Sequence[Item]) -> list[str]:
    """Return the recoverables that a checkpoint has to hold."""
    return [item.name for item in items if not item.optional and not item.per_rank]


def read_whole(checkpoint: Checkpoint, items: Sequence[Item]) -> dict[str, Any]:
    """Read large states whose tensors are kept, each file checked while it is read.

    Returns
    -------
    dict
        By the name of the file.  One that is damaged is not among them, nor one that another way
        of reading suits better: a module copies its state, so that it is best mapped.
    """
    manifest = read_manifest(checkpoint.path)
    found: dict[str, Any] = {}
    if manifest is None:
        return found
    for item in items:
        file = checkpoint.paramfiles.get(item.name)
        if file is None or item.loader is not None or isinstance(item.obj, torch.nn.Module):
            continue
        digest = manifest.files.get(file.name)
        if digest is None or digest.size < LEAST_BYTES:
            continue
        read = read_checked(file, digest, manifest.algorithm)
        if read is not None:
            found[file.name] = respell(read[0])
    return found


def prepare(
    checkpoint: Checkpoint,
    items: Sequence[Item],
    rank: int,
    read: Mapping[str, Any],
    *,
    partial: bool,
    trusted: bool,
) -> list[Step]:
    """Read what is to be restored, and find out whether it fits.

    Parameters
    ----------
    checkpoint : Checkpoint
        A verified one.
    items : sequence of Item
        What to restore.
    rank : int
        This one.
    read : mapping of str to object
        What `read_whole` returned.
    partial : bool
        Whether what is missing is left as it is.
    trusted : bool
        Whether files may run code.

    Raises
    ------
    CheckpointMismatchError
        If something is missing, or does not fit.
    """
    missing = (
        [] if partial else [n for n in required_names(items) if n not in checkpoint.paramfiles]
    )
    if missing:
        there = ", ".join(map(repr, sorted(checkpoint.paramfiles))) or "nothing"
        raise CheckpointMismatchError(
            f"{checkpoint.path} has to hold a file for each recoverable, got none for "
            f"{', '.join(map(repr, missing))} (it holds {there}); restore a part with only=..., or "
            f"add what may be missing with add_recoverable(..., optional_load=True)"
        )
    end_of_epoch = bool(checkpoint.meta.get("end-of-epoch", True))
    steps = []
    for item in items:
        path = _file_of(item, checkpoint, rank)
        if path is not None:
            steps.append(_step(item, path, end_of_epoch, read, trusted=trusted))
    return steps


def _file_of(item: Item, checkpoint: Checkpoint, rank: int) -> Path | None:
    if item.per_rank:
        path = checkpoint.path / RANKS_DIRECTORY / str(rank) / f"{item.name}.pt"
        if path.is_file():
            return path
        logger.info("%s has no %r of rank %d; it stays as it is", checkpoint.path, item.name, rank)
        return None
    found = checkpoint.paramfiles.get(item.name)
    if found is None:
        logger.warning(
            "%s has no %r, which is optional; it stays as it is", checkpoint.path, item.name
        )
    return found


def _step(
    item: Item, path: Path, end_of_epoch: bool, read: Mapping[str, Any], *, trusted: bool
) -> Step:
    if item.loader is not None:
        call = item.loader.call
        return Step(item.name, lambda: call(path, end_of_epoch))
    if not item.per_rank and path.name in read:
        state = read[path.name]
    else:
        # A module copies what it is given; who keeps it must not keep a mapped file.
        state = read_state(path, trusted=trusted, mmap=isinstance(item.obj, torch.nn.Module))
    state = assemble(item.obj, state, path.parent / SHARDS_DIRECTORY, item.name)
    check_state(item.obj, state, item.name)
    return Step(item.name, lambda: set_state(item.obj, state, item.name))
