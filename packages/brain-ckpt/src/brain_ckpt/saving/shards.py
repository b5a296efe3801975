"""Writing sharded state: each rank its parts, in a file of its own, without communication.

The files and their index are those of torch's distributed checkpoint, whose planner says which
rank writes what; the writing goes through our own stream, so that it can be done by a thread
beside training, and its checksums are taken on the way.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from brain_ckpt.loading.shards import PLACE_HOLDER, SHARDS_INDEX, is_dtensor
from brain_ckpt.ranks.agreement import together
from brain_ckpt.recoverables.hooks import write_state
from brain_ckpt.storage.layout import SHARDS_DIRECTORY
from brain_ckpt.storage.stream import write_file
from brain_dist import get_rank

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from brain_ckpt.storage.checksum import Algorithm, FileDigest
    from brain_ckpt.storage.stream import Stream


class ShardPlan(NamedTuple):
    """What this rank writes, as torch's planner has it, and the index of what all write."""

    items: Sequence[Any]
    metadata: Any


class ShardFile(NamedTuple):
    """What a rank has written: its file, below the checkpoint, and where in it each part is."""

    name: str
    digest: FileDigest
    places: dict[Any, Any]


def split(state: Any, name: str) -> tuple[Any, dict[str, Any]]:
    """Take the sharded tensors out of a state.

    Parameters
    ----------
    state : object
        A state of dicts, lists and tensors.
    name : str
        The recoverable's.

    Returns
    -------
    object, dict of str to DTensor
        The rest, with place holders; the tensors by the names in these.
    """
    shards: dict[str, Any] = {}

    def walk(value: Any, path: str) -> Any:
        if is_dtensor(value):
            shards[path] = value.detach()
            return {PLACE_HOLDER: path}
        if isinstance(value, Mapping):
            return {key: walk(inner, f"{path}/{key}") for key, inner in value.items()}
        if type(value) in (list, tuple):
            return type(value)(walk(inner, f"{path}/{n}") for n, inner in enumerate(value))
        return value

    return walk(state, name), shards


def plan_shards(shards: Mapping[str, Any]) -> ShardPlan:
    """Decide which rank writes what; every rank calls it with its tensors, by their names."""
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

    rank = get_rank()
    planner = DefaultSavePlanner()

    def mine() -> Any:
        planner.set_up_planner(dict(shards), None, rank == 0)
        return planner.create_local_plan()

    plans = together(mine)
    found: list[ShardPlan] = []

    def decide_alike() -> None:
        # The same on each rank, from the same plans: nobody has to be told.
        final, metadata = planner.create_global_plan(plans)
        found.append(ShardPlan(final[rank].items, metadata))

    together(decide_alike)
    return found[0]


def write_shards(
    directory: Path, plan: ShardPlan, parts: Mapping[str, torch.Tensor], algorithm: Algorithm
) -> ShardFile | None:
    """Write this rank's parts; None where it has none to write.

    Parameters
    ----------
    directory : Path
        The checkpoint's; its folder of shards is there.
    plan : ShardPlan
        Which parts.
    parts : mapping of str to Tensor
        This rank's, by the names of the tensors that they are parts of.
    algorithm : str
        The checksum.
    """
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    if not plan.items:
        return None
    file = f"__{get_rank()}_0.distcp"
    places: dict[Any, Any] = {}

    def produce(stream: Stream) -> None:
        places.clear()
        counting = _Counting(stream)
        for item in plan.items:
            start = counting.count_bytes
            write_state(_alone(parts[item.index.fqn]), counting)
            places[item.index] = _StorageInfo(file, start, counting.count_bytes - start)

    digest = write_file(directory / SHARDS_DIRECTORY / file, produce, algorithm)
    return ShardFile(f"{SHARDS_DIRECTORY}/{file}", digest, places)


def index_of(plan: ShardPlan, files: Sequence[ShardFile]) -> tuple[str, bytes]:
    """Return the name and the content of the file that says where each part is."""
    from torch.distributed.checkpoint import filesystem
    from torch.distributed.checkpoint.metadata import StorageMeta

    metadata = plan.metadata
    metadata.storage_data = {index: place for one in files for index, place in one.places.items()}
    metadata.storage_meta = StorageMeta()
    if hasattr(filesystem, "CURRENT_DCP_VERSION"):
        metadata.version = filesystem.CURRENT_DCP_VERSION
    return f"{SHARDS_DIRECTORY}/{SHARDS_INDEX}", pickle.dumps(metadata)


class _Counting:
    """A stream that knows how much was written to it."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.count_bytes = 0

    def write(self, data: Any) -> int:
        taken = self._stream.write(data)
        self.count_bytes += taken
        return taken

    def flush(self) -> None:
        """Do nothing: bytes are held back by the stream, if at all."""


def _alone(part: torch.Tensor) -> torch.Tensor:
    # torch.save writes the whole storage of a view.
    whole = part.untyped_storage().nbytes() == part.nbytes
    return part if whole and part.is_contiguous() else part.clone().contiguous()
