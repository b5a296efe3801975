"""Write sharded states: each rank writes its parts to its own file, without communication.

The files and their index have the format of torch's distributed checkpoint, whose planner decides
which rank writes what.  The parts are written through this package's stream, in the background if
needed, with checksums.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, NamedTuple

from brain_ckpt.ranks.agreement import gather_results, run_on_all_ranks
from brain_ckpt.recoverables.serialization import write_state
from brain_ckpt.storage.layout import SHARDS_DIRECTORY, SHARDS_INDEX
from brain_ckpt.storage.stream import write_file
from brain_dist import get_rank

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

    from brain_ckpt.storage.checksum import Algorithm, FileDigest
    from brain_ckpt.storage.stream import Stream


class ShardPlan(NamedTuple):
    """The parts that this rank writes, and the metadata of the parts of all ranks."""

    items: Sequence[Any]
    metadata: Any


class ShardFile(NamedTuple):
    """The file that a rank has written: its name, its digest and the position of each part."""

    name: str
    digest: FileDigest
    positions: dict[Any, Any]


def plan_shards(shards: Mapping[str, Any]) -> ShardPlan:
    """Plan which rank writes which parts; every rank calls it with its tensors by name."""
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

    rank = get_rank()
    planner = DefaultSavePlanner()

    def local_plan() -> Any:
        planner.set_up_planner(dict(shards), None, rank == 0)
        return planner.create_local_plan()

    local_plans = gather_results(local_plan)
    plan: list[ShardPlan] = []

    def global_plan() -> None:
        # Every rank computes the same result from the same plans; a broadcast is not needed.
        plans, metadata = planner.create_global_plan(local_plans)
        plan.append(ShardPlan(plans[rank].items, metadata))

    run_on_all_ranks(global_plan)
    return plan[0]


def write_shards(
    directory: Path, plan: ShardPlan, parts: Mapping[str, torch.Tensor], algorithm: Algorithm
) -> ShardFile | None:
    """Write the parts of this rank; return None if it has none.

    Parameters
    ----------
    directory : Path
        The directory of the checkpoint, with the subdirectory for shards.
    plan : ShardPlan
        The parts of this rank.
    parts : mapping of str to Tensor
        The parts, by the names of their tensors.
    algorithm : str
        The checksum.
    """
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    if not plan.items:
        return None
    file = f"__{get_rank()}_0.distcp"
    positions: dict[Any, Any] = {}

    def produce(stream: Stream) -> None:
        positions.clear()
        counting = _CountingStream(stream)
        for item in plan.items:
            start = counting.count_bytes
            write_state(_own_storage(parts[item.index.fqn]), counting)
            positions[item.index] = _StorageInfo(file, start, counting.count_bytes - start)

    digest = write_file(directory / SHARDS_DIRECTORY / file, produce, algorithm)
    return ShardFile(f"{SHARDS_DIRECTORY}/{file}", digest, positions)


def index_file(plan: ShardPlan, files: Sequence[ShardFile]) -> tuple[str, bytes]:
    """Return the name and the content of the file with the position of each part."""
    from torch.distributed.checkpoint import filesystem
    from torch.distributed.checkpoint.metadata import StorageMeta

    metadata = plan.metadata
    metadata.storage_data = {
        index: position for file in files for index, position in file.positions.items()
    }
    metadata.storage_meta = StorageMeta()
    if hasattr(filesystem, "CURRENT_DCP_VERSION"):
        metadata.version = filesystem.CURRENT_DCP_VERSION
    return f"{SHARDS_DIRECTORY}/{SHARDS_INDEX}", pickle.dumps(metadata)


class _CountingStream:
    """A stream that counts the bytes written to it."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.count_bytes = 0

    def write(self, data: Any) -> int:
        length = self._stream.write(data)
        self.count_bytes += length
        return length

    def flush(self) -> None:
        """Do nothing; the stream writes its buffer at its end."""


def _own_storage(part: torch.Tensor) -> torch.Tensor:
    # torch.save writes the whole storage of a view.
    is_whole = part.untyped_storage().nbytes() == part.nbytes
    return part if is_whole and part.is_contiguous() else part.clone().contiguous()
