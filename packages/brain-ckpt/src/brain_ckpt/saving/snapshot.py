"""The state of one rank at the time of a save."""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from brain_ckpt.recoverables.encoding import encode_state
from brain_ckpt.recoverables.parameter_groups import GroupNames, group_names
from brain_ckpt.recoverables.sharding import is_sharded, split
from brain_ckpt.recoverables.states import get_state
from brain_ckpt.storage.layout import PARAMFILE_EXT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from brain_ckpt.recoverables.registry import Recoverable

logger = logging.getLogger(__name__)


@dataclass
class Snapshot:
    """The state of one rank.

    Parameters
    ----------
    states : dict of str to object
        The states that this rank writes, by recoverable.
    rank_files : dict of str to bytes
        The files of the recoverables that each rank has its own state of.
    shards : dict of str to DTensor
        Tensors of which each rank has a part.
    parts : dict of str to Tensor
        The parts of this rank, by the same names.
    parameter_names : dict of str to list
        The names of the parameters in the groups of each optimizer.
    """

    states: dict[str, Any] = field(default_factory=dict)
    rank_files: dict[str, bytes] = field(default_factory=dict)
    shards: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, torch.Tensor] = field(default_factory=dict)
    parameter_names: dict[str, GroupNames] = field(default_factory=dict)


def take_snapshot(
    recoverables: Sequence[Recoverable],
    staging: Path,
    *,
    is_leader: bool,
    copy: Callable[[Any], Any] | None = None,
) -> Snapshot:
    """Get the states of this rank, and call the savers that run on every rank.

    Parameters
    ----------
    recoverables : sequence of Recoverable
        The objects.
    staging : Path
        The directory that the checkpoint is written in.
    is_leader : bool
        Whether this rank writes states.
    copy : callable, optional
        Copies a state, for a save that is written during training.
    """
    snapshot = Snapshot()
    for recoverable in recoverables:
        if recoverable.per_rank:
            snapshot.rank_files[recoverable.name] = _to_bytes(recoverable)
        elif recoverable.saver is None:
            _add_state(snapshot, recoverable, is_leader=is_leader, copy=copy)
        elif recoverable.saver.all_ranks:
            recoverable.saver.call(staging / f"{recoverable.name}{PARAMFILE_EXT}")
    return snapshot


def _add_state(
    snapshot: Snapshot,
    recoverable: Recoverable,
    *,
    is_leader: bool,
    copy: Callable[[Any], Any] | None,
) -> None:
    name = recoverable.name
    sharded = is_sharded(recoverable.obj)
    if not sharded and not is_leader:
        return
    state = get_state(recoverable.obj)
    if sharded:
        state, shards = split(state, name)
        snapshot.shards.update(shards)
        for key, tensor in shards.items():
            part = tensor.to_local()
            snapshot.parts[key] = part.cpu() if copy is None else copy(part)
    if is_leader:
        if isinstance(state, Mapping) and not state:
            logger.warning("The state of %r is empty", name)
        state = encode_state(state, name, recoverable.safe_globals)
        snapshot.states[name] = state if copy is None else copy(state)
        if isinstance(recoverable.obj, torch.optim.Optimizer):
            names = group_names(recoverable.obj, recoverable.parameters)
            snapshot.parameter_names[name] = names


def _to_bytes(recoverable: Recoverable) -> bytes:
    if recoverable.saver is None:
        buffer = io.BytesIO()
        torch.save(recoverable.encoded_state(), buffer)
        return buffer.getvalue()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"{recoverable.name}{PARAMFILE_EXT}"
        recoverable.saver.call(path)
        return path.read_bytes()
