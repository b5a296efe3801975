"""Loaders on gloo ranks: equal numbers of batches, similar work, nothing repeated."""

from __future__ import annotations

import json
import statistics
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from brain_data import DynamicBatchSampler, SaveableDataLoader, distributed_loader_specifics

ROWS = 600


def _train(rank: int, world_size: int, last_round: Any) -> dict[str, Any]:
    """Run an epoch with a collective at each batch, and return the batches."""
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
    return {"seen": seen, "states": states, "length": len(loader)}


@pytest.mark.parametrize("last_round", ["split", "pad"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_varying_batches_are_sharded_evenly(ranks: Any, world_size: int, last_round: str) -> None:
    """The ranks have the same number of batches, of similar length, and each row once."""
    found = ranks(_train, world_size, world_size, last_round)
    assert len({len(rank["seen"]) for rank in found}) == 1
    assert all(rank["length"] == len(rank["seen"]) for rank in found)
    spread = []
    for batches in zip(*(rank["seen"] for rank in found), strict=True):
        totals = [sum(batch) for batch in batches]
        spread.append((max(totals) - min(totals)) / max(totals))
    assert statistics.median(spread) < 0.05
    lengths = [length for rank in found for batch in rank["seen"] for length in batch]
    assert len(lengths) == len(set(lengths)) == ROWS
    assert all(rank["states"] == found[0]["states"] for rank in found)
    assert max(len(json.dumps(state)) for state in found[0]["states"]) < 1000
