"""States that earlier versions have saved can be loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from data_helpers import listed
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from brain_data import (
    DistributedSamplerWrapper,
    DynamicBatchSampler,
    ReproducibleRandomSampler,
    ResumableLoader,
    SaveableDataLoader,
)

# Written by the first release: for each loader its state after two batches, and the rest.
SAVED = json.loads(Path(__file__).with_name("saved_states.json").read_text(encoding="utf-8"))
# Written later, before states held what samplers draw: also the end of the pass, and the next pass.
SAVED_LATER = json.loads(
    Path(__file__).with_name("saved_states_of_streams.json").read_text(encoding="utf-8")
)


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


class Counted(IterableDataset[int]):
    """Has a state, and counts its passes."""

    def __init__(self) -> None:
        self.done = self.passes = 0

    def __iter__(self) -> Any:
        while self.done < 20:
            self.done += 1
            yield 100 * self.passes + self.done
        self.done, self.passes = 0, self.passes + 1

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done, "passes": self.passes}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done, self.passes = state["done"], state["passes"]


class Rows:
    """An iterator with a state."""

    def __init__(self) -> None:
        self.i = 0

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> int:
        if self.i >= 20:
            raise StopIteration
        self.i += 1
        return self.i

    def state_dict(self) -> dict[str, int]:
        return {"i": self.i}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.i = state["i"]


class OfRows(IterableDataset[int]):
    def __iter__(self) -> Any:
        return Rows()


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


LATER: dict[str, Any] = {
    "stateful stream": lambda: SaveableDataLoader(Counted(), batch_size=4),
    "stateful iterator": lambda: SaveableDataLoader(OfRows(), batch_size=4),
    "generator": lambda: SaveableDataLoader(
        range(20), batch_size=4, shuffle=True, generator=generator()
    ),
    "shuffle": lambda: SaveableDataLoader(range(20), batch_size=4, shuffle=True),
    "resumable shuffle": lambda: ResumableLoader(DataLoader(range(20), batch_size=4, shuffle=True)),
    "resumable stream": lambda: ResumableLoader(DataLoader(Counted(), batch_size=4)),
}


@pytest.mark.parametrize("name", LATER)
def test_a_state_saved_in_a_pass_loads_and_the_rest_is_the_same(name: str) -> None:
    """The state at the end of the pass leads to the next one."""
    saved = SAVED_LATER[name]
    loader = LATER[name]()
    loader.load_state_dict(saved["state"])
    assert listed(loader) == saved["rest"]
    loader = LATER[name]()
    loader.load_state_dict(saved["end"])
    following = listed(loader)
    assert len(following) == len(saved["next"])
    if name not in {"shuffle", "resumable shuffle"}:  # drawn from the global generator
        assert following == saved["next"]
