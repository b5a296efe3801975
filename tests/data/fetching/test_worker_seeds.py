"""Random draws while rows are fetched: seeded by seed, epoch and position only."""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import USES_WORKERS
from torch.utils.data import BatchSampler, ConcatDataset, Subset, TensorDataset, default_collate

from brain_data import DistributedSamplerWrapper, ReproducibleRandomSampler, SaveableDataLoader
from brain_data.fetching.worker import draws_no_random_numbers
from brain_data.order.seeding import DEFAULT_SEED, TemporarySeed, global_seed, hash_integers

pytestmark = USES_WORKERS


class Augmented:
    """Rows with draws from each of the three generators."""

    def __init__(self, rows: int = 30) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> list[float]:
        return [row, torch.rand(()).item(), np.random.rand(), random.random()]


def collate(rows: list[list[float]]) -> list[Any]:
    """Draw random numbers, as mixup does."""
    return [rows, torch.rand(()).item(), np.random.randn(), random.gauss(0, 1)]


def augmented(**kwargs: Any) -> Any:
    sampler = ReproducibleRandomSampler(range(30))
    return SaveableDataLoader(
        Augmented(), batch_size=4, sampler=sampler, collate_fn=collate, **kwargs
    )


def generators() -> list[Any]:
    keys = np.random.get_state()
    return [torch.get_rng_state().tolist(), keys[1].tolist(), keys[2:], random.getstate()]


def test_any_number_of_workers_gives_equal_bits() -> None:
    """Rows and the collate function draw from torch, numpy and random in two epochs."""
    epochs = []
    for workers in (0, 1, 2, 3):
        loader = augmented(num_workers=workers, persistent_workers=workers == 2)
        first = list(loader)
        loader.set_epoch(1)
        epochs.append((first, list(loader)))
    assert all(epoch == epochs[0] for epoch in epochs)
    assert epochs[0][0] != epochs[0][1]
    noise = [row[1:] for batch in epochs[0][0] for row in batch[0]]
    assert len({tuple(row) for row in noise}) == 30


def test_resuming_with_another_number_of_workers_gives_equal_bits() -> None:
    """The generators need not be saved."""
    whole = list(augmented())
    for before, after in ((0, 2), (2, 3), (3, 0), (1, 0)):
        loader = augmented(num_workers=before)
        iterator = iter(loader)
        assert [next(iterator) for _ in range(3)] == whole[:3]
        again = augmented(num_workers=after, prefetch_factor=3 if after else None)
        again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        assert list(again) == whole[3:]


def test_the_draws_of_a_batch_do_not_depend_on_the_number_of_ranks() -> None:
    """They depend on the place in the plan of all ranks."""
    noise = {}
    for world_size in (1, 2, 3):
        for rank in range(world_size):
            batches = BatchSampler(ReproducibleRandomSampler(range(24)), 4, drop_last=False)
            sampler = DistributedSamplerWrapper(batches, world_size, rank)
            for batch in SaveableDataLoader(
                Augmented(24), batch_sampler=sampler, collate_fn=collate
            ):
                first = batch[0][0]
                assert noise.setdefault(first[0], batch) == batch
    assert len(noise) == 6


@pytest.mark.parametrize("gauss", [False, True])
def test_without_workers_the_generators_of_the_main_process_are_restored(gauss: bool) -> None:
    """So is the second value of a pair of normal numbers, which numpy keeps."""
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    loader = augmented()
    iterator = iter(loader)
    for _ in range(3):
        if gauss:
            np.random.randn()
            random.gauss(0, 1)
        else:
            np.random.rand()
        before = generators()
        next(iterator)
        assert generators() == before
        next(iterator)
        assert generators() == before


def test_the_generators_are_restored_if_a_row_fails() -> None:
    """The exception is raised."""
    before = generators()

    def fail() -> None:
        with TemporarySeed(5):
            torch.rand(3)
            np.random.randn()
            random.random()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert generators() == before


def test_with_workers_the_generators_of_the_main_process_do_not_change() -> None:
    """Only torch's iterator draws one number."""
    torch.manual_seed(1)
    torch.empty((), dtype=torch.int64).random_()
    expected = generators()[0]
    torch.manual_seed(1)
    before = generators()[1:]
    list(augmented(num_workers=2))
    assert generators() == [expected, *before]


def test_the_seed_and_the_epoch_change_the_draws() -> None:
    """Each of the two is enough."""
    loader = augmented(seed=1)
    first = list(loader)
    assert list(augmented(seed=1)) == first
    assert list(augmented(seed=2)) != first


def test_another_seed_on_resuming_is_refused() -> None:
    """The draws in the rest of the epoch would differ."""
    with pytest.raises(ValueError, match="seed was 1 and is 2"):
        augmented(seed=2).load_state_dict(augmented(seed=1).state_dict())


def test_the_seed_of_the_run_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is SB_GLOBAL_SEED, which seed_everything sets, or SpeechBrain's number."""
    monkeypatch.delenv("SB_GLOBAL_SEED", raising=False)
    assert augmented().seed == DEFAULT_SEED == 563375142
    monkeypatch.setenv("SB_GLOBAL_SEED", "12")
    assert augmented().seed == 12
    monkeypatch.setenv("SB_GLOBAL_SEED", "twelve")
    with pytest.raises(ValueError, match="SB_GLOBAL_SEED must be an integer, got 'twelve'"):
        global_seed()


def test_data_without_user_code_needs_no_seed() -> None:
    """Swapping the generators would be useless."""
    tensors = TensorDataset(torch.arange(4))
    for plain in ([1, 2], range(3), tensors, Subset(tensors, [0]), ConcatDataset([tensors])):
        assert draws_no_random_numbers(plain, default_collate)
    assert not draws_no_random_numbers(Augmented(), default_collate)
    assert not draws_no_random_numbers(ConcatDataset([tensors, Augmented()]), default_collate)
    assert not draws_no_random_numbers(tensors, collate)


def test_hashes_of_neighbouring_integers_differ() -> None:
    """Neighbouring positions, epochs and seeds share nothing."""
    seeds = {hash_integers(s, e, p) for s in range(10) for e in range(10) for p in range(100)}
    assert len(seeds) == 10_000
    assert len({seed & 0xFFFFFFFF for seed in seeds}) > 9_990
    assert max(seeds) < 2**64
    assert hash_integers(1, 2, 3) == 0x7C961D2BEC0CBCBA


def test_without_numpy_the_other_generators_are_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may never import it."""
    monkeypatch.delitem(sys.modules, "numpy")
    before = random.getstate()
    with TemporarySeed(5):
        inside = random.random()
    with TemporarySeed(5):
        assert random.random() == inside
    assert random.getstate() == before
