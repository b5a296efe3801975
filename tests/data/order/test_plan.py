"""The plan of an epoch and its sharding among ranks, as functions of integers."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from brain_data import DynamicBatchSampler, KeyedRandomSampler, ReproducibleRandomSampler
from brain_data.order.plan import EpochPlan, as_order, from_batches, split_into_batches
from brain_data.order.sharding import ShardedPlan, dividing_world_sizes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from brain_data.order.sharding import LastRound

GROUP = 12
WORLD_SIZES = (1, 2, 3, 4, 6, 12)
CASES = 2_100


def random_plan(draw: random.Random) -> EpochPlan:
    """Return an epoch of random size: batches of one size, or of varying size."""
    rows, seed, epoch = draw.randint(1, 150), draw.randrange(2**31), draw.randrange(5)
    if draw.random() < 0.6:
        kind = KeyedRandomSampler if draw.random() < 0.1 else ReproducibleRandomSampler
        sampler = kind(range(rows), seed=seed, epoch=epoch)
        return split_into_batches(sampler.order(), draw.randint(1, 9))
    lengths = [draw.randint(1, 100) for _ in range(rows)]
    return DynamicBatchSampler(
        range(rows), 100, num_buckets=draw.randint(1, 8), lengths_list=lengths, seed=seed,
        epoch=epoch, shuffle=draw.random() < 0.8,
        batch_ordering=draw.choice(["random", "random", "ascending", "descending"]),
        max_batch_ex=draw.choice([None, 5]),
    ).plan()  # fmt: skip


def train(
    plan: EpochPlan, draw: random.Random, *, stops: int, last_round: LastRound = "split"
) -> tuple[list[list[int]], int, list[list[list[int]]]]:
    """Run an epoch, stopping at optimizer steps and resuming with another world size.

    Returns the rows of each optimizer step without padding batches, the number of unassigned rows,
    and the rounds.
    """
    stop_at = sorted(draw.sample(range(1, 20), stops))
    position, steps, rounds = 0, [], []
    candidates = [ShardedPlan(plan, size, last_round=last_round) for size in WORLD_SIZES]
    while True:
        shards = draw.choice([c for c in candidates if c.is_round_start(position)])
        world_size = shards.world_size
        first = shards.rounds_before(position)
        last = shards.num_rounds
        if stop_at:
            last = min(last, stop_at.pop(0) * GROUP // world_size)
        for number in range(first, last):
            if number * world_size % GROUP == 0:
                steps.append([])
            parts = [shards.rows(number, rank)[1] for rank in range(world_size)]
            rounds.append(parts)
            real = [part for rank, part in enumerate(parts) if not shards.is_padding(number, rank)]
            assert len(real) == world_size - shards.padding_batches_in(number)
            steps[-1].extend(row for part in real for row in part)
        position = max(position, shards.position_after(last))
        if position >= plan.num_batches:
            return steps, shards.unassigned_rows, rounds


def one_process_steps(plan: EpochPlan) -> list[list[int]]:
    """Return the rows of each step if one process takes GROUP micro-batches in each step."""
    return [
        [
            row
            for index in range(low, min(low + GROUP, plan.num_batches))
            for row in plan.batch(index)
        ]
        for low in range(0, plan.num_batches, GROUP)
    ]


@pytest.fixture(scope="module")
def random_runs() -> list[tuple[EpochPlan, list[list[int]], int, list[list[list[int]]]]]:
    """Run many random epochs, each stopped and resumed on other world sizes."""
    draw = random.Random(20)
    runs = []
    for _ in range(CASES):
        plan = random_plan(draw)
        runs.append((plan, *train(plan, draw, stops=draw.randint(0, 4))))
    return runs


def test_every_row_is_taken_once_an_epoch_whatever_the_world_sizes(random_runs) -> None:
    """Only an epoch with fewer rows than ranks loses rows, and says so."""
    for plan, steps, unassigned, _ in random_runs:
        taken = [row for step in steps for row in step]
        assert len(taken) == len(set(taken)) == plan.num_samples - unassigned
        assert unassigned < max(WORLD_SIZES)
        if unassigned == 0:
            assert sorted(taken) == list(range(plan.num_samples))


def test_steps_take_the_rows_of_the_one_process_plan(random_runs) -> None:
    """Only a last round with fewer rows than ranks is merged into the step before it."""
    same = 0
    for plan, steps, unassigned, _ in random_runs:
        expected = one_process_steps(plan)
        if unassigned:
            continue
        if len(steps) == len(expected):
            assert [sorted(step) for step in steps] == [sorted(step) for step in expected]
            same += 1
            continue
        assert len(steps) == len(expected) - 1
        assert len(expected[-1]) < max(WORLD_SIZES)
        assert sorted(steps[-1]) == sorted(expected[-2] + expected[-1])
    assert same > 0.8 * CASES


def test_padded_steps_take_the_rows_of_the_one_process_plan_without_exception() -> None:
    """The same rows are in the same order in the same number of steps, whatever the sizes."""
    draw = random.Random(21)
    for _ in range(CASES):
        plan = random_plan(draw)
        stops = draw.randint(0, 4)
        steps, unassigned, rounds = train(plan, draw, stops=stops, last_round="pad")
        assert steps == one_process_steps(plan)
        assert unassigned == 0
        assert all(part for parts in rounds for part in parts)


def test_ranks_get_equally_many_batches_and_none_is_empty(random_runs) -> None:
    """Otherwise a rank would wait for the others forever."""
    for _, _, _, rounds in random_runs:
        for parts in rounds:
            assert all(parts)


def test_a_split_round_is_even_for_batches_of_one_size() -> None:
    """The parts of the last round differ by one row at most."""
    draw = random.Random(3)
    for _ in range(300):
        world_size = draw.randint(2, 9)
        plan = split_into_batches(np.arange(draw.randint(world_size, 200)), draw.randint(1, 20))
        shards = ShardedPlan(plan, world_size)
        if shards.split_round is not None:
            sizes = [len(part) for part in shards.split_round]
            assert max(sizes) - min(sizes) <= 1
            assert max(sizes) <= int(np.diff(plan.bounds).max()) + 1


def test_a_split_round_of_varying_batches_never_pads_beyond_the_limit() -> None:
    """A part lies within one batch; only rows merged into a full round may be added."""
    draw = random.Random(4)
    for _ in range(300):
        lengths = [draw.randint(1, 100) for _ in range(draw.randint(12, 150))]
        sampler = DynamicBatchSampler(
            lengths, 100, num_buckets=4, lengths_list=lengths, seed=draw.randrange(99)
        )
        shards = ShardedPlan(sampler.plan(), draw.choice([2, 3, 4]))
        whole = (shards.full_rounds + 1) * shards.world_size
        if shards.split_round is None or whole > len(sampler):
            for number in range(shards.num_rounds):
                for rank in range(shards.world_size):
                    durations = sampler.get_durations(shards.rows(number, rank)[1])
                    assert max(durations) * len(durations) <= 100


def test_dropping_the_last_leaves_every_batch_whole() -> None:
    """An incomplete micro-batch and an incomplete round are dropped."""
    plan = split_into_batches(np.arange(47), 5, drop_last=True)
    assert plan.num_batches == 9
    shards = ShardedPlan(plan, 4, drop_last=True)
    assert (shards.num_rounds, shards.unassigned_rows) == (2, 5)
    assert {len(shards.rows(i, r)[1]) for i in range(2) for r in range(4)} == {5}


def test_fewer_rows_than_ranks_are_merged_into_the_preceding_round() -> None:
    """Thirteen rows in fours on three ranks are one round."""
    shards = ShardedPlan(split_into_batches(np.arange(13), 4), 3)
    assert shards.num_rounds == 1
    assert [shards.rows(0, rank)[1] for rank in range(3)] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11, 12],
    ]  # fmt: skip


def test_fewer_rows_than_ranks_in_all_are_refused() -> None:
    """There is no preceding round, and nothing is dropped silently."""
    shards = ShardedPlan(split_into_batches(np.arange(2), 4), 3)
    assert (shards.num_rounds, shards.unassigned_rows) == (0, 2)
    with pytest.raises(ValueError, match=r"each of 3 ranks .*got 2: use at most 2 .*'pad'"):
        shards.check()
    ShardedPlan(split_into_batches(np.arange(2), 4), 3, drop_last=True).check()


def test_a_padded_round_assigns_the_remaining_batches_whole_and_copies_of_them() -> None:
    """Of seven micro-batches on five ranks, the second round has three padding batches."""
    shards = ShardedPlan(split_into_batches(np.arange(13), 2), 5, last_round="pad")
    counts = (shards.num_rounds, shards.full_rounds, shards.padding_batches)
    assert (*counts, shards.unassigned_rows) == (2, 1, 3, 0)
    last = [shards.rows(1, rank) for rank in range(5)]
    whole, short = (10, [10, 11]), (12, [12])
    assert last == [whole, short, whole, short, whole]
    assert [shards.is_padding(1, rank) for rank in range(5)] == [False, False, True, True, True]
    assert not any(shards.is_padding(0, rank) for rank in range(5))
    assert [shards.padding_batches_in(0), shards.padding_batches_in(1)] == [0, 3]


def test_a_padded_plan_resumes_at_the_end_of_every_round() -> None:
    """No round is merged, so any number of ranks can resume."""
    plan = split_into_batches(np.arange(65), 5)
    for world_size in (1, 2, 3, 4, 6, 12):
        shards = ShardedPlan(plan, world_size, last_round="pad")
        assert shards.rounds_before(12) == 12 // world_size
        assert shards.position_after(shards.num_rounds) == plan.num_batches
    with pytest.raises(ValueError, match=r"5 ranks .*got micro-batch 12 of 13.*6, 12\]"):
        ShardedPlan(plan, 5, last_round="pad").rounds_before(12)


def test_sharding_from_the_middle_takes_the_remaining_rows_once() -> None:
    """A regrouped run repeats nothing and loses nothing."""
    plan = split_into_batches(np.arange(103), 4)
    shards = ShardedPlan(plan, 3, start=7)
    batches = [shards.rows(i, r)[1] for i in range(shards.num_rounds) for r in range(3)]
    taken = [row for batch in batches for row in batch]
    assert sorted(taken) == list(range(28, 103))


def test_a_position_between_rounds_is_refused_with_the_possible_world_sizes() -> None:
    """The error lists the alternatives."""
    shards = ShardedPlan(split_into_batches(np.arange(100), 2), 4)
    with pytest.raises(ValueError, match=r"4 ranks .*got micro-batch 6 .*\[1, 2, 3, 6\]"):
        shards.rounds_before(6)
    assert dividing_world_sizes(12) == [1, 2, 3, 4, 6, 12]


def test_rows_that_would_have_been_merged_into_a_consumed_round_are_not_lost() -> None:
    """Six ranks cannot resume with five rows left, and raise; three can."""
    plan = split_into_batches(np.arange(65), 5)
    assert ShardedPlan(plan, 3).rounds_before(12) == 4
    with pytest.raises(ValueError, match=r"6 ranks .*got micro-batch 12 of 13.*\[1, 2, 3, 4\]"):
        ShardedPlan(plan, 6).rounds_before(12)


def test_a_round_after_the_last_is_an_index_error() -> None:
    """Rounds do not wrap around."""
    with pytest.raises(IndexError, match="below 3 is required, got 3"):
        ShardedPlan(split_into_batches(np.arange(10), 4), 1).rows(3, 0)


def test_a_plan_of_listed_batches_keeps_keys_of_any_type() -> None:
    """Rows need not be integers."""
    plan = from_batches([["a", "b"], ["c"]])
    assert [plan.batch(0), plan.batch(1)] == [["a", "b"], ["c"]]
    assert as_order([True, False]) == [True, False]


def test_the_checksum_depends_on_order_and_bounds() -> None:
    """Both decide which rows a batch holds."""

    def variants() -> Iterator[EpochPlan]:
        yield split_into_batches(np.arange(10), 2)
        yield split_into_batches(np.arange(10), 5)
        yield split_into_batches(np.arange(10)[::-1], 2)
        yield from_batches([["a"], ["b"]])
        yield from_batches([["a", "b"]])

    sums = [plan.checksum() for plan in variants()]
    assert len(set(sums)) == len(sums)
    assert sums == [plan.checksum() for plan in variants()]
