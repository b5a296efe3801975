"""Loaders on real gloo ranks: equal numbers of batches, like work, nothing repeated."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 600

SCRIPT = """
import json, os, sys
import numpy as np
import torch
import torch.distributed as dist
from brain_data import DynamicBatchSampler, SaveableDataLoader, distributed_loader_specifics

rank, world_size, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank,
                        world_size=world_size)
lengths = np.random.default_rng(1).lognormal(5, 0.6, int(sys.argv[4])).clip(0, 2000).tolist()
sampler = DynamicBatchSampler(lengths, 4000, num_buckets=12, lengths_list=lengths)
loader = SaveableDataLoader(
    lengths, **distributed_loader_specifics(True, rank, lengths, {"batch_sampler": sampler}))
loader.set_epoch(2)
seen, states = [], []
for batch in loader:
    total = batch.sum()
    dist.all_reduce(total)  # a rank with more batches than another would hang here
    seen.append(batch.tolist())
    states.append(loader.state_dict())
with open(f"{folder}/rank{rank}.json", "w") as file:
    json.dump({"seen": seen, "states": states, "length": len(loader)}, file)
dist.barrier()
dist.destroy_process_group()
"""


def run_ranks(world_size: int, folder: Path) -> list[dict[str, Any]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(world_size), str(folder), str(ROWS)],
            env=environment,
        )
        for rank in range(world_size)
    ]
    try:
        assert [rank.wait(timeout=120) for rank in ranks] == [0] * world_size
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return [json.loads((folder / f"rank{r}.json").read_text()) for r in range(world_size)]


@pytest.mark.parametrize("world_size", [2, 3])
def test_varying_batches_are_shared_fairly(world_size: int, tmp_path: Path) -> None:
    """Equal in number, within 5 % of each other in length in the median, each row once."""
    ranks = run_ranks(world_size, tmp_path)
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
