"""States in the layout of version 0.1 can be loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_helpers import listed
from torch.utils.data import BatchSampler, IterableDataset

from brain_data import (
    DistributedSamplerWrapper,
    DynamicBatchSampler,
    ReproducibleRandomSampler,
    SaveableDataLoader,
)

# Written by the first release: for each loader its state after two batches, and the rest.
SAVED = json.loads(Path(__file__).with_name("saved_states.json").read_text(encoding="utf-8"))


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        yield from range(20)


def shuffled() -> Any:
    sampler = ReproducibleRandomSampler(range(50), seed=1)
    return SaveableDataLoader(range(50), batch_size=4, sampler=sampler)


def dynamic() -> Any:
    lengths = [1 + (7 * row) % 20 for row in range(80)]
    sampler = DynamicBatchSampler(lengths, 60, num_buckets=4, lengths_list=lengths)
    return SaveableDataLoader(range(80), batch_sampler=sampler)


def two_ranks() -> Any:
    batches = BatchSampler(ReproducibleRandomSampler(range(50), seed=1), 2, drop_last=False)
    return SaveableDataLoader(
        range(50), batch_sampler=DistributedSamplerWrapper(batches, num_replicas=2, rank=0)
    )


def listed_batches() -> Any:
    return SaveableDataLoader(range(40), batch_sampler=[[3, 1], [2], [39, 0, 7], [5]])


def stream() -> Any:
    return SaveableDataLoader(Stream(), batch_size=4)


LOADERS = {
    "shuffled": shuffled,
    "dynamic": dynamic,
    "two ranks": two_ranks,
    "list": listed_batches,
    "stream": stream,
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_state_of_the_first_release_loads_and_the_rest_is_the_same(name: str) -> None:
    """A run that was started with it resumes exactly."""
    loader = LOADERS[name]()
    loader.load_state_dict(SAVED[name]["state"])
    assert listed(loader) == SAVED[name]["rest"]
