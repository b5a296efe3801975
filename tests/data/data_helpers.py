"""What several tests of brain-data use: loaders of one rank, states, and warnings of workers."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import pytest
from torch.utils.data import BatchSampler

from brain_data import DistributedSamplerWrapper, ReproducibleRandomSampler, SaveableDataLoader

USES_WORKERS = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]
"""Marks of a module whose tests fork workers, which torch and Python warn of."""


def keep(rows: Any) -> Any:
    """Return the rows: a collate function."""
    return rows


def listed(batches: Any) -> list[list[int]]:
    """Return batches of tensors as lists."""
    return [batch.tolist() for batch in batches]


def saved_state(loader: Any) -> dict[str, Any]:
    """Return the state of a loader as it comes back from a JSON file."""
    state: dict[str, Any] = json.loads(json.dumps(loader.state_dict()))
    return state


def state_after(loader: Any, batches: int) -> dict[str, Any]:
    """Return the state of a loader after a number of batches, as it comes back from a file."""
    iterator = iter(loader)
    for _ in range(batches):
        next(iterator)
    return saved_state(loader)


def first_batches(loader: Any, count: int) -> list[Any]:
    """Return the first batches of a pass."""
    return list(islice(iter(loader), count))


def loader_of_rank(
    rank: int, world_size: int, rows: int = 50, batch_size: int = 2, **kwargs: Any
) -> SaveableDataLoader:
    """Return the loader of one of several ranks over shuffled row numbers."""
    batches = BatchSampler(
        ReproducibleRandomSampler(range(rows), seed=1), batch_size, drop_last=False
    )
    sampler = DistributedSamplerWrapper(batches, num_replicas=world_size, rank=rank)
    return SaveableDataLoader(range(rows), batch_sampler=sampler, **kwargs)
