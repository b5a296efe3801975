"""Loaders on gloo ranks: equal numbers of batches, similar work, nothing repeated."""

from __future__ import annotations

import json
import multiprocessing
import statistics
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from brain_data import DynamicBatchSampler, SaveableDataLoader, distributed_loader_specifics

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 600

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


def run_rank(rank: int, world_size: int, folder: Path, last_round: Any) -> None:
    """Run an epoch with a collective at each batch, and write the batches to a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    lengths = np.random.default_rng(1).lognormal(5, 0.6, ROWS).clip(0, 2000).tolist()
    sampler = DynamicBatchSampler(lengths, 4000, num_buckets=12, lengths_list=lengths)
    kwargs = distributed_loader_specifics(True, rank, lengths, {"batch_sampler": sampler})  # noqa: FBT003
    loader = SaveableDataLoader(lengths, last_round=last_round, **kwargs)
    loader.set_epoch(2)
    seen, states = [], []
    for batch in loader:
        total = batch.sum()
        dist.all_reduce(total)  # a rank with more batches than another would hang here
        seen.append([] if loader.is_padding else batch.tolist())
        states.append(loader.state_dict())
    found = {"seen": seen, "states": states, "length": len(loader)}
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def run_ranks(world_size: int, folder: Path, last_round: str) -> list[dict[str, Any]]:
    # Forked, since a new process takes seconds to import torch.
    fork = multiprocessing.get_context("fork")
    ranks = [
        fork.Process(target=run_rank, args=(rank, world_size, folder, last_round))
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.start()
    try:
        for rank in ranks:
            rank.join(timeout=60)
        assert [rank.exitcode for rank in ranks] == [0] * world_size
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    return [json.loads((folder / f"rank{r}.json").read_text()) for r in range(world_size)]


@pytest.mark.parametrize("last_round", ["split", "pad"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_varying_batches_are_sharded_evenly(
    world_size: int, last_round: str, tmp_path: Path
) -> None:
    """The ranks have the same number of batches, of similar length, and each row once."""
    ranks = run_ranks(world_size, tmp_path, last_round)
    assert len({len(rank["seen"]) for rank in ranks}) == 1
    assert all(rank["length"] == len(rank["seen"]) for rank in ranks)
    spread = []
    for batches in zip(*(rank["seen"] for rank in ranks), strict=True):
        totals = [sum(batch) for batch in batches]
        spread.append((max(totals) - min(totals)) / max(totals))
    assert statistics.median(spread) < 0.05
    lengths = [length for rank in ranks for batch in rank["seen"] for length in batch]
    assert len(lengths) == len(set(lengths)) == ROWS
    assert all(rank["states"] == ranks[0]["states"] for rank in ranks)
    assert max(len(json.dumps(state)) for state in ranks[0]["states"]) < 1000
