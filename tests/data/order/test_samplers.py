"""SpeechBrain's samplers: their orders and their errors."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from brain_data import (
    BalancingDataSampler,
    ConcatDatasetBatchSampler,
    DistributedSamplerWrapper,
    DynamicItemDataset,
    ReproducibleRandomSampler,
    ReproducibleWeightedRandomSampler,
    SaveableDataLoader,
)

ROWS_AS_BATCHED_BY_SPEECHBRAIN = Path(__file__).parent / "speechbrain_order.json"


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def test_the_random_order_is_torchs_with_the_seed_and_the_epoch_added() -> None:
    """This holds with replacement and for other numbers of samples, too."""
    for kwargs in (
        {}, {"num_samples": 7}, {"num_samples": 25}, {"replacement": True, "num_samples": 40},
    ):  # fmt: skip
        ours = ReproducibleRandomSampler(range(10), seed=5, **kwargs)
        for epoch in (0, 3):
            ours.set_epoch(epoch)
            theirs = RandomSampler(range(10), generator=seeded(5 + epoch), **kwargs)
            assert list(ours) == list(theirs)
            assert len(ours) == len(theirs)


def test_the_default_order_is_the_one_of_a_run_by_speechbrain() -> None:
    """Three epochs of 202 rows in fours are compared, with its default seed."""
    expected = json.loads(ROWS_AS_BATCHED_BY_SPEECHBRAIN.read_text())
    sampler = ReproducibleRandomSampler(range(202))
    loader = SaveableDataLoader(range(202), batch_size=4, sampler=sampler)
    batches = []
    for epoch in (1, 2, 3):
        loader.set_epoch(epoch)
        batches += [batch.tolist() for batch in loader]
    assert batches == expected


def test_weighted_rows_are_torchs_with_the_seed_and_the_epoch_added() -> None:
    """The example of SpeechBrain's docstring holds."""
    weights = [0.1, 0.9, 0.4, 0.7, 3.0, 0.6]
    ours = ReproducibleWeightedRandomSampler(weights, 5, replacement=True)
    assert list(ours) == [3, 1, 4, 4, 4]
    ours.set_epoch(1)
    assert list(ours) == [4, 5, 4, 4, 3]
    for replacement in (True, False):
        ours = ReproducibleWeightedRandomSampler(weights, 4, replacement, seed=3, epoch=2)
        theirs = WeightedRandomSampler(weights, 4, replacement, generator=seeded(5))
        assert list(ours) == list(theirs)


@pytest.mark.parametrize(
    "make",
    [
        lambda **kwargs: ReproducibleRandomSampler(range(3), **kwargs),
        lambda **kwargs: ReproducibleWeightedRandomSampler([1.0], 1, True, **kwargs),  # noqa: FBT003
    ],
)
def test_a_generator_is_refused(make: Any) -> None:
    """It would override the seed."""
    with pytest.raises(ValueError, match=r"seeds a generator of its own.*pass seed= instead"):
        make(generator=torch.Generator())


def test_iterating_has_no_side_effect() -> None:
    """Two iterations are equal, and nothing is drawn from the global generator."""
    before = torch.get_rng_state()
    for sampler in (
        ReproducibleRandomSampler(range(9)),
        ReproducibleWeightedRandomSampler([1.0] * 9, 5, replacement=True),
    ):
        assert list(sampler) == list(sampler)
    assert torch.equal(before, torch.get_rng_state())


def test_balancing_draws_each_value_of_a_key_equally_often() -> None:
    """Weights are one over the count of a value, and SpeechBrain's example holds."""
    data = {
        1: {"category": "A", "text": "This is a test"},
        2: {"category": "A", "text": "This is a second test"},
        3: {"category": "B", "text": "This is a third test"},
    }
    dataset = DynamicItemDataset(data=data)
    sampler = BalancingDataSampler(dataset=dataset, key="category", num_samples=10)
    assert sampler.weights.tolist() == [0.5, 0.5, 1.0]
    assert list(sampler) == [2, 2, 1, 2, 2, 0, 1, 1, 1, 2]
    assert len(BalancingDataSampler(dataset, "category")) == 3


def test_a_concatenation_takes_a_fixed_number_of_rows_of_each_part_in_each_batch() -> None:
    """It ends when one part has too few rows left."""
    parts = [ReproducibleRandomSampler(range(10)), ReproducibleRandomSampler(range(20))]
    sampler = ConcatDatasetBatchSampler(parts, [2, 4])
    batches = list(sampler)
    assert len(batches) == len(sampler) == 5
    assert all(max(batch[:2]) < 10 <= min(batch[2:]) for batch in batches)
    assert sorted(row for batch in batches for row in batch) == list(range(30))
    sampler.set_epoch(1)
    assert list(sampler) != batches
    assert {part.epoch for part in parts} == {1}


def test_a_part_that_draws_fewer_rows_than_it_has_does_not_shift_the_next() -> None:
    """Offsets are the sizes of the data, not of the samplers."""
    parts = [ReproducibleRandomSampler(range(10), num_samples=4), SequentialSampler(range(6))]
    data = ConcatDataset([TensorDataset(torch.arange(10)), TensorDataset(torch.arange(100, 106))])
    batches = list(ConcatDatasetBatchSampler(parts, [2, 2]))
    assert [[data[row][0].item() for row in batch[2:]] for batch in batches] == [
        [100, 101], [102, 103],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("samplers", "sizes", "words"),
    [
        (SequentialSampler(range(3)), [1], "samplers must be a list or tuple"),
        ([SequentialSampler(range(3))], 1, "batch_sizes must be a list or tuple"),
        ([SequentialSampler(range(3))], [1, 2], "same length, got 1 and 2"),
        ([SequentialSampler(range(3))], [0], "must be positive"),
    ],
)
def test_a_concatenation_refuses_invalid_arguments(samplers: Any, sizes: Any, words: str) -> None:
    """The error type is SpeechBrain's."""
    with pytest.raises(ValueError, match=words):
        ConcatDatasetBatchSampler(samplers, sizes)


def shares(make: Any, world_size: int) -> list[list[Any]]:
    return [list(make(num_replicas=world_size, rank=rank)) for rank in range(world_size)]


def test_one_batch_for_each_rank_stays_a_batch() -> None:
    """SpeechBrain yields the rows of the batch as batches."""
    batches = [[0, 1, 2], [3, 4, 5]]
    assert shares(lambda **kwargs: DistributedSamplerWrapper(batches, **kwargs), 2) == [
        [[0, 1, 2]], [[3, 4, 5]],
    ]  # fmt: skip


def test_batches_are_assigned_round_robin_without_repeats_and_equal_in_number() -> None:
    """This holds for any number of batches and ranks, and the wrapper's length is right."""
    draw = random.Random(1)
    for _ in range(200):
        rows, size, world_size = draw.randint(6, 80), draw.randint(1, 8), draw.randint(1, 6)
        drop_last = draw.random() < 0.3

        def make(num_replicas: int, rank: int) -> Any:
            batches = BatchSampler(range(rows), size, drop_last=drop_last)  # noqa: B023
            return DistributedSamplerWrapper(batches, num_replicas, rank, drop_last=drop_last)  # noqa: B023

        assigned = shares(make, world_size)
        assert {len(share) for share in assigned} == {len(make(world_size, 0))}
        taken = [row for share in assigned for batch in share for row in batch]
        assert len(taken) == len(set(taken))
        if not drop_last:
            assert sorted(taken) == list(range(rows))


def test_rows_are_assigned_without_repeats_unless_pad_is_set() -> None:
    """torch's DistributedSampler repeats some by default."""

    def make(**kwargs: Any) -> Any:
        return DistributedSamplerWrapper(SequentialSampler(range(7)), **kwargs)

    assert shares(make, 3) == [[0, 3, 6], [1, 4], [2, 5]]
    assert [len(make(num_replicas=3, rank=rank)) for rank in range(3)] == [3, 2, 2]
    assert shares(lambda **k: make(pad=True, **k), 3) == [[0, 3, 6], [1, 4, 0], [2, 5, 1]]
    assert shares(lambda **k: make(drop_last=True, **k), 3) == [[0, 3], [1, 4], [2, 5]]


def test_the_wrapped_order_is_kept_unless_shuffle_is_set() -> None:
    """SpeechBrain shuffles any sampler again by default."""
    batches = [[row] for row in range(40)]

    def make(**kwargs: Any) -> Any:
        return DistributedSamplerWrapper(batches, **kwargs)

    assert shares(make, 2) == [batches[::2], batches[1::2]]
    mixed = shares(lambda **k: make(shuffle=True, **k), 2)
    assert mixed != [batches[::2], batches[1::2]]
    assert sorted(mixed[0] + mixed[1]) == batches
    loaders = [
        SaveableDataLoader(range(40), batch_sampler=make(shuffle=True, num_replicas=2, rank=rank))
        for rank in range(2)
    ]
    assert [[batch.tolist() for batch in loader] for loader in loaders] == mixed


def test_the_epoch_reaches_the_wrapped_sampler() -> None:
    """It is passed through torch's BatchSampler, too."""
    inner = ReproducibleRandomSampler(range(8))
    DistributedSamplerWrapper(inner, 2, 0).set_epoch(3)
    assert inner.epoch == 3
    DistributedSamplerWrapper(BatchSampler(inner, 2, drop_last=False), 2, 0).set_epoch(4)
    assert inner.epoch == 4


def test_a_rank_outside_the_group_is_refused() -> None:
    """The error lists the possible ranks."""
    with pytest.raises(ValueError, match="rank from 0 to 1 is required, got 2"):
        DistributedSamplerWrapper(range(4), num_replicas=2, rank=2)


def test_in_one_process_it_yields_everything() -> None:
    """Rank and number of ranks come from the environment."""
    assert list(DistributedSamplerWrapper(SequentialSampler(range(5)))) == [0, 1, 2, 3, 4]
    assert isinstance(DistributedSamplerWrapper(range(3)), DistributedSampler)


def test_torchs_own_distributed_sampler_is_one_ranks_share() -> None:
    """Another number of replicas on resuming is refused by name."""

    def make(replicas: int) -> Any:
        sampler = DistributedSampler(range(12), num_replicas=replicas, rank=0, shuffle=True)
        return SaveableDataLoader(range(12), batch_size=2, sampler=sampler)

    loader = make(2)
    whole = [batch.tolist() for batch in loader]
    iterator = iter(loader)
    next(iterator)
    again = make(2)
    again.load_state_dict(loader.state_dict())
    assert [batch.tolist() for batch in again] == whole[1:]
    with pytest.raises(ValueError, match="num_replicas was 2 and is 3"):
        make(3).load_state_dict(loader.state_dict())
