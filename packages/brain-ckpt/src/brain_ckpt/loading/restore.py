"""Read the states of an opened checkpoint completely before the first object is changed."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from brain_ckpt.errors import CheckpointMismatchError
from brain_ckpt.loading.checked_read import MIN_BYTES, read_checked
from brain_ckpt.loading.mapped_pages import ReleaseMappedPages
from brain_ckpt.loading.shards import assemble
from brain_ckpt.recoverables.encoding import decode_state
from brain_ckpt.recoverables.parameter_groups import (
    GroupNames,
    GroupPlan,
    add_missing_groups,
    decode_names,
    plan_groups,
)
from brain_ckpt.recoverables.serialization import read_state, rename_old_keys
from brain_ckpt.recoverables.states import check_state, set_state
from brain_ckpt.storage import filesystem
from brain_ckpt.storage.layout import PARAMETER_NAMES, RANKS_DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from brain_ckpt.recoverables.registry import Recoverable
    from brain_ckpt.storage.opened import OpenedCheckpoint

logger = logging.getLogger(__name__)


class RestoreStep(NamedTuple):
    """Restores one object.

    Parameters
    ----------
    apply : callable
        Restores it; a hook gets the path that users know.
    repeat : callable
        Calls the hook again with a path that still refers to a replaced checkpoint.
    """

    apply: Callable[[], Any]
    repeat: Callable[[], Any]


def required_names(recoverables: Sequence[Recoverable]) -> list[str]:
    """Return the recoverables that a checkpoint must hold."""
    return [one.name for one in recoverables if not one.optional and not one.per_rank]


def read_checked_states(
    opened: OpenedCheckpoint, recoverables: Sequence[Recoverable]
) -> dict[str, Any]:
    """Read large states whose tensors are kept, and compare each file while it is read.

    Returns
    -------
    dict
        States by file name.  Damaged files are not included, nor are states of modules: a module
        copies its state, so mapping the file is faster.
    """
    manifest = opened.manifest
    states: dict[str, Any] = {}
    if manifest is None:
        return states
    for one in recoverables:
        file = opened.checkpoint.paramfiles.get(one.name)
        if file is None or one.loader is not None or isinstance(one.obj, torch.nn.Module):
            continue
        digest = manifest.files.get(file.name)
        if digest is None or digest.size < MIN_BYTES:
            continue
        with one.safe_globals.during_load():
            read = read_checked(opened.file(file), digest, manifest.algorithm)
        if read is not None:
            state = decode_state(read[0], str(file), one.safe_globals)
            states[file.name] = rename_old_keys(state)
    return states


def prepare_restore(
    opened: OpenedCheckpoint,
    recoverables: Sequence[Recoverable],
    rank: int,
    checked_states: Mapping[str, Any],
    *,
    partial: bool,
    trusted: bool,
) -> dict[str, RestoreStep]:
    """Read the states to restore, and check that they fit.

    Parameters
    ----------
    opened : OpenedCheckpoint
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

    Returns
    -------
    dict of str to RestoreStep
        By recoverable.

    Raises
    ------
    CheckpointMismatchError
        If a file is missing or a state does not fit.
    """
    checkpoint = opened.checkpoint
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
    names = _read_names(opened)
    steps = {}
    for one in recoverables:
        path = _file_of(one, opened, rank)
        if path is not None and one.loader is not None:
            steps[one.name] = _hook_step(one.loader.call, path, opened.file(path), end_of_epoch)
        elif path is not None:
            plan = _plan_groups(one, names.get(path.stem))
            steps[one.name] = _state_step(one, path, opened, checked_states, plan, trusted=trusted)
    return steps


def _file_of(recoverable: Recoverable, opened: OpenedCheckpoint, rank: int) -> Path | None:
    name, checkpoint = recoverable.name, opened.checkpoint
    if recoverable.per_rank:
        rank_file = f"{RANKS_DIRECTORY}/{rank}/{name}.pt"
        if opened.has_file(rank_file):
            return checkpoint.path / rank_file
        logger.info("%s has no %r of rank %d, which keeps its state", checkpoint.path, name, rank)
        return None
    file = checkpoint.paramfiles.get(name)
    if file is None:
        logger.warning("%s has no %r, which is optional and keeps its state", checkpoint.path, name)
    return file


def _hook_step(call: Callable[..., Any], path: Path, file: Path, end_of_epoch: bool) -> RestoreStep:
    return RestoreStep(lambda: call(path, end_of_epoch), lambda: call(file, end_of_epoch))


def _read_names(opened: OpenedCheckpoint) -> dict[str, GroupNames]:
    if opened.manifest is None or not opened.has_file(PARAMETER_NAMES):
        return {}
    size = opened.manifest.files[PARAMETER_NAMES].size
    return decode_names(filesystem.read(opened.locate(PARAMETER_NAMES), size))


def _plan_groups(one: Recoverable, names: GroupNames | None) -> GroupPlan | None:
    if not isinstance(one.obj, torch.optim.Optimizer):
        return None
    return plan_groups(one.obj, names, one.parameters)


def _state_step(
    recoverable: Recoverable,
    path: Path,
    opened: OpenedCheckpoint,
    checked_states: Mapping[str, Any],
    plan: GroupPlan | None,
    *,
    trusted: bool,
) -> RestoreStep:
    name, obj = recoverable.name, recoverable.obj
    if not recoverable.per_rank and path.name in checked_states:
        state, is_mapped = checked_states[path.name], False
    else:
        # A module copies its state; an object that keeps its state must not keep a mapped file.
        is_mapped = isinstance(obj, torch.nn.Module)
        state = read_state(
            opened.file(path),
            trusted=trusted,
            mmap=is_mapped,
            safe_globals=recoverable.safe_globals,
        )
    groups = None if plan is None else plan.parameters
    state = assemble(obj, state, opened.locate, name, groups)
    check_state(obj, state, name, groups)

    def apply() -> None:
        if plan is not None:
            add_missing_groups(obj, plan, state, name)
        with (
            ReleaseMappedPages(state, opened.file(path)) if is_mapped else contextlib.nullcontext()
        ):
            set_state(obj, state, name)

    return RestoreStep(apply, apply)
