"""The steps of one save: taking the state, writing it, sealing the directory."""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from brain_ckpt.errors import CheckpointSaveError
from brain_ckpt.loading.shards import is_sharded
from brain_ckpt.recoverables.hooks import PathHook, write_state
from brain_ckpt.recoverables.states import get_state
from brain_ckpt.retention.policies import Checkpoint
from brain_ckpt.saving.shards import index_of, split
from brain_ckpt.storage.layout import PARAMFILE_EXT, RANKS_DIRECTORY
from brain_ckpt.storage.manifest import Manifest
from brain_ckpt.storage.meta import dump_meta
from brain_ckpt.storage.stream import Stream, write_file

if TYPE_CHECKING:
    from brain_ckpt.saving.plan import Plan
    from brain_ckpt.saving.shards import ShardFile, ShardPlan
    from brain_ckpt.storage.commit import Staging
    from brain_ckpt.storage.store import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """One recoverable, with the way it is saved and loaded.

    Parameters
    ----------
    name : str
        Its name, and that of its file.
    obj : object
        The object.
    saver, loader : PathHook or None
        None where its state is taken and put back.
    optional : bool
        Whether a checkpoint without it may be loaded.
    per_rank : bool
        Whether each rank has a state of its own.
    """

    name: str
    obj: Any
    saver: PathHook | None
    loader: PathHook | None
    optional: bool = False
    per_rank: bool = False


class Taken(NamedTuple):
    """The state of one rank.

    Parameters
    ----------
    states : dict of str to object
        What is still to be written, by recoverable.
    own : dict of str to bytes
        The files that only this rank has.
    shards : dict of str to DTensor
        Tensors of which each rank has a part.
    parts : dict of str to Tensor
        The parts of this rank, by the same names.
    """

    states: dict[str, Any]
    own: dict[str, bytes]
    shards: dict[str, Any]
    parts: dict[str, torch.Tensor]


def take(
    items: Sequence[Item], plan: Plan, *, leads: bool, copy: Callable[[Any], Any] | None = None
) -> Taken:
    """Take the state of this rank, and call the savers that every rank calls.

    Parameters
    ----------
    items : sequence of Item
        The recoverables.
    plan : Plan
        The save.
    leads : bool
        Whether this rank writes.
    copy : callable, optional
        Copies a state, for a save that is written while training goes on.
    """
    states: dict[str, Any] = {}
    own: dict[str, bytes] = {}
    shards: dict[str, Any] = {}
    parts: dict[str, torch.Tensor] = {}
    for item in items:
        if item.per_rank:
            own[item.name] = _bytes_of(item)
        elif item.saver is None:
            if is_sharded(item.obj):
                state, found = split(get_state(item.obj), item.name)
                shards.update(found)
                for name, tensor in found.items():
                    part = tensor.to_local()
                    parts[name] = part.cpu() if copy is None else copy(part)
            elif leads:
                state = get_state(item.obj)
            else:
                continue
            if leads:
                state = plain_state(state, item.name)
                if not state:
                    logger.warning("the state of %r is empty", item.name)
                states[item.name] = state if copy is None else copy(state)
        elif item.saver.all_ranks:
            item.saver.call(plan.staging / f"{item.name}{PARAMFILE_EXT}")
    return Taken(states, own, shards, parts)


def call_savers(items: Sequence[Item], plan: Plan) -> None:
    """Have the hooks that write a path write it; for the first rank alone."""
    for item in items:
        if item.saver is None or item.per_rank:
            continue
        path = plan.staging / f"{item.name}{PARAMFILE_EXT}"
        if not item.saver.all_ranks:
            item.saver.call(path)
        if not path.exists():
            raise CheckpointSaveError(
                f"a saver writes the path that it gets, and that of {item.name!r} did not "
                f"write {path.name}; have it write there, also where there is nothing to say"
            )


def write_states(
    store: Store, staging: Staging, states: Mapping[str, Any], owned: Sequence[Mapping[str, bytes]]
) -> None:
    """Write what was taken; for who leads.

    Parameters
    ----------
    store : Store
        Where.
    staging : Staging
        The directory.
    states : mapping of str to object
        By recoverable.
    owned : sequence of mapping
        The `own` files of every rank, in rank order.
    """
    for name, state in states.items():
        file = f"{name}{PARAMFILE_EXT}"
        staging.files[file] = write_file(staging.path / file, _writer_of(state), store.algorithm)
    for rank, files in enumerate(owned):
        for name, content in files.items():
            directory = f"{RANKS_DIRECTORY}/{rank}"
            store.subdirectory(staging, directory)
            store.write(staging, f"{directory}/{name}.pt", content)


def seal(
    store: Store,
    staging: Staging,
    plan: Plan,
    shards: ShardPlan | None,
    files: Sequence[ShardFile],
) -> None:
    """Write the meta file and the manifest of what was written; for who leads.

    Parameters
    ----------
    store : Store
        Where.
    staging : Staging
        The directory.
    plan : Plan
        The save.
    shards : ShardPlan, optional
        Which tensors the ranks share.
    files : sequence of ShardFile
        What the ranks have written of them.
    """
    if shards is not None:
        staging.files.update((one.name, one.digest) for one in files)
        store.write(staging, *index_of(shards, files))
    store.sweep_in(staging)
    step = plan.meta.get("step")
    manifest = Manifest(
        commit=plan.commit,
        run=store.run,
        seq=plan.seq,
        step=step if isinstance(step, int) and not isinstance(step, bool) else None,
        world=plan.world,
        torch=torch.__version__,
        algorithm=store.algorithm,
    )
    store.seal(staging, dump_meta(plan.meta), manifest)


def checkpoint_of(plan: Plan, items: Sequence[Item]) -> Checkpoint:
    """Return the checkpoint that a plan becomes."""
    files = {
        item.name: plan.final / f"{item.name}{PARAMFILE_EXT}" for item in items if not item.per_rank
    }
    return Checkpoint(plan.final, plan.meta, files)


def save_error(error: BaseException, final: Path) -> CheckpointSaveError:
    """Say that a checkpoint was not saved, and why."""
    if isinstance(error, CheckpointSaveError):
        return error
    where = getattr(error, "filename", None)
    why = getattr(error, "strerror", None) or str(error) or repr(error)
    return CheckpointSaveError(
        f"{final} could not be saved: {type(error).__name__}: {why}"
        f"{f' ({where})' if where else ''}; the checkpoints that were there are untouched: free "
        f"space or mend the cause, and save again"
    )


def plain_state(state: Any, name: str) -> Any:
    """Replace NumPy scalars in a state, which a safe loader refuses; warn of what else it will."""
    found: list[str] = []
    plain = _plain(state, name, found)
    if found:
        logger.warning(
            "the state of %r holds what is only loaded with trusted=True: %s; keep tensors and "
            "plain values in it",
            name,
            ", ".join(found[:3]),
        )
        return state
    return plain


_SAFE: tuple[type, ...] = (type(None), bool, int, float, complex, str, bytes, bytearray)
_SAFE += (torch.Tensor, torch.dtype, torch.device, torch.Size, torch.storage.UntypedStorage)


def _plain(value: Any, where: str, found: list[str]) -> Any:
    kind = type(value)
    if kind in _SAFE or isinstance(value, torch.Tensor):
        return value
    if (
        kind.__module__ == "numpy"
        and hasattr(value, "item")
        and getattr(value, "shape", None) == ()
    ):
        return value.item()
    if isinstance(value, Mapping):
        parts = {key: _plain(inner, f"{where}.{key}", found) for key, inner in value.items()}
        unchanged = all(parts[key] is inner for key, inner in value.items())
        return value if unchanged else parts
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        listed = [_plain(inner, f"{where}[{n}]", found) for n, inner in enumerate(value)]
        unchanged = all(new is old for new, old in zip(listed, value, strict=True))
        return value if unchanged else kind(listed)
    if isinstance(value, (set, frozenset)):
        return value
    found.append(f"{where} ({kind.__module__}.{kind.__qualname__})")
    return value


def _writer_of(state: Any) -> Callable[[Stream], None]:
    return lambda stream: write_state(state, stream)


def _bytes_of(item: Item) -> bytes:
    if item.saver is None:
        buffer = io.BytesIO()
        torch.save(plain_state(get_state(item.obj), item.name), buffer)
        return buffer.getvalue()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"{item.name}{PARAMFILE_EXT}"
        item.saver.call(path)
        return path.read_bytes()
