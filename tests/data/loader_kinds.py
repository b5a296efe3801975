"""Loaders as users write them, and training loops that are killed and resumed with them."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import torch
from data_helpers import ShuffledByPython, keep
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from brain_data import ResumableLoader
from brain_data.order.generator_states import capture_global, restore_global
from brain_dist import get_rank, get_world_size

ROWS = 22
EPOCHS = (1, 2, 3)


class NoisyRows(Dataset[Any]):
    """Rows with draws from torch, random and numpy."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> list[float]:
        return [row, torch.rand(()).item(), random.random(), np.random.rand()]


class PythonShuffle(ShuffledByPython):
    """Of these rows."""

    rows = ROWS


class NumpyShuffle(PythonShuffle):
    """Shuffles by a generator that it holds."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(5)

    def __iter__(self) -> Any:
        return iter(self.rng.permutation(ROWS).tolist())


class OneByOne(PythonShuffle):
    """Draws each row when it is asked for it."""

    def __iter__(self) -> Any:
        return (int(torch.randint(ROWS, ())) for _ in range(ROWS))


class CountsPasses(PythonShuffle):
    """Seeds each pass by a counter of passes."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Any:
        self.passes += 1
        generator = torch.Generator().manual_seed(self.passes)
        return iter(torch.randperm(ROWS, generator=generator).tolist())


class Stream(IterableDataset[Any]):
    """Shuffles its rows by Python's global generator; workers share them."""

    def __iter__(self) -> Any:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        rows = list(range(worker, ROWS, workers))
        random.shuffle(rows)
        for row in rows:
            yield [row, torch.rand(()).item()]


class AddsNoise:
    """A loader around a loader."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Any:
        for batch in self.loader:
            yield [*batch, torch.rand(()).item()]


class KeepsItsOrder:
    """A loader with a state of its own."""

    def __init__(self) -> None:
        self.position, self.seed = 0, 0

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Any:
        order = random.Random(self.seed).sample(range(6), 6)
        while self.position < 6:
            self.position += 1
            yield [order[self.position - 1]]
        self.position, self.seed = 0, self.seed + 1

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position, self.seed = state["position"], state["seed"]


def of_rows(workers: int, **kwargs: Any) -> Any:
    kwargs = {"batch_size": 4, "collate_fn": keep, "num_workers": workers, **kwargs}
    if "batch_sampler" in kwargs:
        del kwargs["batch_size"]
    return DataLoader(NoisyRows(), **kwargs)


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


KINDS: dict[str, Any] = {
    "shuffle": lambda workers: of_rows(workers, shuffle=True),
    "persistent": lambda workers: of_rows(
        workers, sampler=WeightedRandomSampler([1.0] * ROWS, ROWS), persistent_workers=workers > 0
    ),
    "generator": lambda workers: of_rows(workers, shuffle=True, generator=seeded(3)),
    "weighted": lambda workers: of_rows(workers, sampler=WeightedRandomSampler([1.0] * ROWS, ROWS)),
    "subset": lambda workers: of_rows(workers, sampler=SubsetRandomSampler(range(ROWS))),
    "replacement": lambda workers: of_rows(
        workers, sampler=RandomSampler(range(ROWS), replacement=True)
    ),
    "batch sampler": lambda workers: of_rows(
        workers, batch_sampler=BatchSampler(RandomSampler(range(ROWS)), 4, drop_last=False)
    ),
    "no batches": lambda workers: of_rows(workers, batch_size=None, shuffle=True),
    "shuffles by random": lambda workers: of_rows(workers, sampler=PythonShuffle()),
    "shuffles by numpy": lambda workers: of_rows(workers, sampler=NumpyShuffle()),
    "draws one by one": lambda workers: of_rows(workers, sampler=OneByOne()),
    "counts passes": lambda workers: of_rows(workers, sampler=CountsPasses()),
    "distributed": lambda workers: of_rows(
        workers, batch_size=2, sampler=DistributedSampler(range(ROWS), get_world_size(), get_rank())
    ),
    "stream": lambda workers: DataLoader(
        Stream(), batch_size=4, num_workers=workers, collate_fn=keep
    ),
    "wrapper": lambda workers: AddsNoise(of_rows(workers, shuffle=True)),
    "own state": lambda workers: KeepsItsOrder(),
    "list": lambda workers: [[1, 2], [3], [4, 5], [6], [7]],
}


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def train_step() -> tuple[float, ...]:
    """Draw from each global generator, as a model may."""
    return torch.rand(()).item(), random.random(), np.random.rand()


def epochs_of(loader: ResumableLoader, epochs: Any) -> Any:
    """Yield the number of each epoch, and set it."""
    for epoch in epochs:
        loader.set_epoch(epoch)
        sampler = getattr(loader.loader, "sampler", None)
        if isinstance(sampler, DistributedSampler):
            sampler.set_epoch(epoch)
        yield epoch


def train(kind: str, workers: int, after: int, **kwargs: Any) -> tuple[list[Any], dict[int, Any]]:
    """Train undisturbed; return each batch with what the step drew, and states in each epoch."""
    loader = ResumableLoader(KINDS[kind](workers), **kwargs)
    seen: list[Any] = []
    states: dict[int, Any] = {}
    for epoch in epochs_of(loader, EPOCHS):
        for number, batch in enumerate(loader, 1):
            seen.append((epoch, None if loader.is_padding else batch, train_step()))
            if number == after:
                state = json.loads(json.dumps(loader.state_dict()))
                states[epoch] = state, capture_global(), len(seen)
    return seen, states


def resume(kind: str, workers: int, epoch: int, saved: Any, **kwargs: Any) -> list[Any]:
    """Train from a saved state to the end, in objects of their own and with other generators."""
    state, generators, _ = saved
    seed_everything(99)
    loader = ResumableLoader(KINDS[kind](workers), **kwargs)
    loader.load_state_dict(state)
    seen = []
    for present in epochs_of(loader, range(epoch, EPOCHS[-1] + 1)):
        batches = iter(loader)
        if present == epoch:
            restore_global(generators)
        seen += [(present, None if loader.is_padding else batch, train_step()) for batch in batches]
    return seen
