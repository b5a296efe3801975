"""What is drawn while rows are fetched: seeded by seed, epoch and position, and nothing else."""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, ConcatDataset, Subset, TensorDataset, default_collate

from brain_data import DistributedSamplerWrapper, ReproducibleRandomSampler, SaveableDataLoader
from brain_data.loader.worker import draws_nothing
from brain_data.order.seeding import DEFAULT_SEED, global_seed, mix, seeded

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


class Augmented:
    """Rows with noise from each of the three generators."""

    def __init__(self, rows: int = 30) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> list[float]:
        return [row, torch.rand(()).item(), np.random.rand(), random.random()]


def collate(rows: list[list[float]]) -> list[Any]:
    """Draws, too, as mixup does."""
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
    """Two epochs, drawn from torch, numpy and random in rows and in the collate function."""
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


def test_a_resume_with_another_number_of_workers_gives_equal_bits() -> None:
    """The generators need no saving, and the workers may be others."""
    whole = list(augmented())
    for before, after in ((0, 2), (2, 3), (3, 0), (1, 0)):
        loader = augmented(num_workers=before)
        iterator = iter(loader)
        assert [next(iterator) for _ in range(3)] == whole[:3]
        again = augmented(num_workers=after, prefetch_factor=3 if after else None)
        again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        assert list(again) == whole[3:]


def test_a_batch_has_its_noise_on_any_number_of_ranks() -> None:
    """The position in the plan of all ranks is what counts."""
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
def test_without_workers_the_main_generators_are_undisturbed(gauss: bool) -> None:
    """Also numpy's second value of a pair of normal numbers, which it keeps back."""
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


def test_the_generators_are_put_back_when_a_row_fails() -> None:
    """An exception passes through."""
    before = generators()

    def fail() -> None:
        with seeded(5):
            torch.rand(3)
            np.random.randn()
            random.random()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert generators() == before


def test_with_workers_the_main_generators_are_undisturbed() -> None:
    """But for the one number that torch's iterator draws."""
    torch.manual_seed(1)
    torch.empty((), dtype=torch.int64).random_()
    expected = generators()[0]
    torch.manual_seed(1)
    before = generators()[1:]
    list(augmented(num_workers=2))
    assert generators() == [expected, *before]


def test_the_seed_and_the_epoch_change_the_noise() -> None:
    """Each alone."""
    loader = augmented(seed=1)
    first = list(loader)
    assert list(augmented(seed=1)) == first
    assert list(augmented(seed=2)) != first


def test_another_seed_on_resuming_is_refused() -> None:
    """The rest of the epoch would be drawn otherwise."""
    with pytest.raises(ValueError, match="seed was 1 and is 2"):
        augmented(seed=2).load_state_dict(augmented(seed=1).state_dict())


def test_the_runs_seed_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """SB_GLOBAL_SEED, as seed_everything sets it; else SpeechBrain's number."""
    monkeypatch.delenv("SB_GLOBAL_SEED", raising=False)
    assert augmented().seed == DEFAULT_SEED == 563375142
    monkeypatch.setenv("SB_GLOBAL_SEED", "12")
    assert augmented().seed == 12
    monkeypatch.setenv("SB_GLOBAL_SEED", "twelve")
    with pytest.raises(ValueError, match="SB_GLOBAL_SEED must be an integer, got 'twelve'"):
        global_seed()


def test_data_without_code_is_not_seeded_for() -> None:
    """There the swap of generators would be for nothing."""
    tensors = TensorDataset(torch.arange(4))
    for plain in ([1, 2], range(3), tensors, Subset(tensors, [0]), ConcatDataset([tensors])):
        assert draws_nothing(plain, default_collate)
    assert not draws_nothing(Augmented(), default_collate)
    assert not draws_nothing(ConcatDataset([tensors, Augmented()]), default_collate)
    assert not draws_nothing(tensors, collate)


def test_numbers_are_mixed_to_64_bits_that_differ() -> None:
    """Neighbouring positions, epochs and seeds share nothing."""
    seeds = {mix(s, e, p) for s in range(10) for e in range(10) for p in range(100)}
    assert len(seeds) == 10_000
    assert len({seed & 0xFFFFFFFF for seed in seeds}) > 9_990
    assert max(seeds) < 2**64
    assert mix(1, 2, 3) == 0x7C961D2BEC0CBCBA


def test_without_numpy_the_other_generators_are_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may never load it."""
    monkeypatch.delitem(sys.modules, "numpy")
    before = random.getstate()
    with seeded(5):
        inside = random.random()
    with seeded(5):
        assert random.random() == inside
    assert random.getstate() == before
