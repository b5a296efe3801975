"""Read the states of one checkpoint completely before the first object is changed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from brain_ckpt.errors import CheckpointMismatchError
from brain_ckpt.loading.checked_read import MIN_BYTES, read_checked
from brain_ckpt.loading.shards import assemble
from brain_ckpt.recoverables.encoding import decode_state
from brain_ckpt.recoverables.serialization import read_state, rename_old_keys
from brain_ckpt.recoverables.states import check_state, set_state
from brain_ckpt.storage.layout import RANKS_DIRECTORY, SHARDS_DIRECTORY
from brain_ckpt.storage.listing import read_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from brain_ckpt.recoverables.registry import Recoverable
    from brain_ckpt.retention.checkpoint import Checkpoint

logger = logging.getLogger(__name__)


class RestoreStep(NamedTuple):
    """Restores one object."""

    name: str
    apply: Callable[[], Any]


def required_names(recoverables: Sequence[Recoverable]) -> list[str]:
    """Return the recoverables that a checkpoint must hold."""
    return [one.name for one in recoverables if not one.optional and not one.per_rank]


def read_checked_states(
    checkpoint: Checkpoint, recoverables: Sequence[Recoverable]
) -> dict[str, Any]:
    """Read large states whose tensors are kept, and compare each file while it is read.

    Returns
    -------
    dict
        States by file name.  Damaged files are not included, nor are states of modules: a module
        copies its state, so mapping the file is faster.
    """
    manifest = read_manifest(checkpoint.path)
    states: dict[str, Any] = {}
    if manifest is None:
        return states
    for one in recoverables:
        file = checkpoint.paramfiles.get(one.name)
        if file is None or one.loader is not None or isinstance(one.obj, torch.nn.Module):
            continue
        digest = manifest.files.get(file.name)
        if digest is None or digest.size < MIN_BYTES:
            continue
        with one.safe_globals.during_load():
            read = read_checked(file, digest, manifest.algorithm)
        if read is not None:
            state = decode_state(read[0], str(file), one.safe_globals)
            states[file.name] = rename_old_keys(state)
    return states


def prepare_restore(
    checkpoint: Checkpoint,
    recoverables: Sequence[Recoverable],
    rank: int,
    checked_states: Mapping[str, Any],
    *,
    partial: bool,
    trusted: bool,
) -> list[RestoreStep]:
    """Read the states to restore, and check that they fit.

    Parameters
    ----------
    checkpoint : Checkpoint
        A verified checkpoint.
    recoverables : sequence of Recoverable
        The objects to restore.
    rank : int
        This rank.
    checked_states : mapping of str to object
        The result of `read_checked_states`.
    partial : bool
        Whether objects without a file keep their current state.
    trusted : bool
        Whether files may run code.

    Raises
    ------
    CheckpointMismatchError
        If a file is missing or a state does not fit.
    """
    missing = [
        name
        for name in ([] if partial else required_names(recoverables))
        if name not in checkpoint.paramfiles
    ]
    if missing:
        available = ", ".join(map(repr, sorted(checkpoint.paramfiles))) or "nothing"
        raise CheckpointMismatchError(
            f"{checkpoint.path} must hold a file for each recoverable, got none for "
            f"{', '.join(map(repr, missing))} (it holds {available}); restore a part with "
            f"only=..., or add what may be missing with add_recoverable(..., optional_load=True)"
        )
    end_of_epoch = bool(checkpoint.meta.get("end-of-epoch", True))
    steps = []
    for one in recoverables:
        path = _file_of(one, checkpoint, rank)
        if path is not None:
            steps.append(_step(one, path, end_of_epoch, checked_states, trusted=trusted))
    return steps


def _file_of(recoverable: Recoverable, checkpoint: Checkpoint, rank: int) -> Path | None:
    name = recoverable.name
    if recoverable.per_rank:
        path = checkpoint.path / RANKS_DIRECTORY / str(rank) / f"{name}.pt"
        if path.is_file():
            return path
        logger.info("%s has no %r of rank %d, which keeps its state", checkpoint.path, name, rank)
        return None
    file = checkpoint.paramfiles.get(name)
    if file is None:
        logger.warning("%s has no %r, which is optional and keeps its state", checkpoint.path, name)
    return file


def _step(
    recoverable: Recoverable,
    path: Path,
    end_of_epoch: bool,
    checked_states: Mapping[str, Any],
    *,
    trusted: bool,
) -> RestoreStep:
    name, obj = recoverable.name, recoverable.obj
    if recoverable.loader is not None:
        call = recoverable.loader.call
        return RestoreStep(name, lambda: call(path, end_of_epoch))
    if not recoverable.per_rank and path.name in checked_states:
        state = checked_states[path.name]
    else:
        # A module copies its state; an object that keeps its state must not keep a mapped file.
        state = read_state(
            path,
            trusted=trusted,
            mmap=isinstance(obj, torch.nn.Module),
            safe_globals=recoverable.safe_globals,
        )
    state = assemble(obj, state, path.parent / SHARDS_DIRECTORY, name)
    check_state(obj, state, name)
    return RestoreStep(name, lambda: set_state(obj, state, name))
