"""What several tests of brain-data use: loaders of one rank, states, and warnings of workers."""

from __future__ import annotations

import json
import random
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
from torch.utils.data import BatchSampler, Sampler

from brain_data import DistributedSamplerWrapper, ReproducibleRandomSampler, SaveableDataLoader

if TYPE_CHECKING:
    from collections.abc import Callable

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


def passes_with_states(
    loader: Any, passes: int, as_list: Callable[[Any], list[Any]]
) -> tuple[list[list[Any]], dict[Any, Any]]:
    """Iterate in a loop that never calls set_epoch.

    Return the batches of each pass, and states by (pass, batches, whether the end was seen).
    """
    states: dict[Any, Any] = {(0, None, False): saved_state(loader)}
    seen = []
    for number in range(passes):
        batches: list[Any] = []
        iterator = iter(loader)
        states[number, 0, False] = saved_state(loader)
        for batch in iterator:
            batches.append(as_list(batch))
            states[number, len(batches), False] = saved_state(loader)
        states[number, len(batches), True] = saved_state(loader)
        seen.append(batches)
    return seen, states


class ShuffledByPython(Sampler[int]):
    """Shuffles by Python's global generator."""

    rows = 0

    def __init__(self) -> None:
        pass

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Any:
        order = list(range(self.rows))
        random.shuffle(order)
        return iter(order)


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
