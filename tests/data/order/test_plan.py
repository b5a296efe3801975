"""The plan of an epoch and its deal to ranks, as functions of plain integers."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from brain_data import DynamicBatchSampler, ReproducibleRandomSampler
from brain_data.order.plan import Deal, EpochPlan, as_order, cut, from_batches, valid_world_sizes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from brain_data.order.plan import LastRound

GROUP = 12
WORLD_SIZES = (1, 2, 3, 4, 6, 12)
CASES = 2_100


def random_plan(draw: random.Random) -> EpochPlan:
    """An epoch of random size: batches of one size, or of varying size by random lengths."""
    rows, seed, epoch = draw.randint(1, 150), draw.randrange(2**31), draw.randrange(5)
    if draw.random() < 0.6:
        sampler = ReproducibleRandomSampler(range(rows), seed=seed, epoch=epoch)
        return cut(sampler.order(), draw.randint(1, 9))
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
    """Go through an epoch, stopping at optimizer steps and going on with another world size.

    Returns the rows of each optimizer step without fillers, how many were left out, and the rounds.
    """
    stop_at = sorted(draw.sample(range(1, 20), stops))
    position, steps, rounds = 0, [], []
    deals = [Deal(plan, world_size, last_round=last_round) for world_size in WORLD_SIZES]
    while True:
        deal = draw.choice([deal for deal in deals if deal.reaches(position)])
        world_size = deal.world_size
        first = deal.rounds_done(position)
        last = deal.rounds
        if stop_at:
            last = min(last, stop_at.pop(0) * GROUP // world_size)
        for number in range(first, last):
            if number * world_size % GROUP == 0:
                steps.append([])
            parts = [deal.rows(number, rank)[1] for rank in range(world_size)]
            rounds.append(parts)
            real = [part for rank, part in enumerate(parts) if not deal.is_filler(number, rank)]
            assert len(real) == world_size - deal.fillers_in(number)
            steps[-1].extend(row for part in real for row in part)
        position = max(position, deal.position(last))
        if position >= plan.batches:
            return steps, deal.left_out, rounds


def one_process_steps(plan: EpochPlan) -> list[list[int]]:
    """The rows of each optimizer step where one process takes GROUP micro-batches a step."""
    return [
        [row for index in range(low, min(low + GROUP, plan.batches)) for row in plan.batch(index)]
        for low in range(0, plan.batches, GROUP)
    ]


@pytest.fixture(scope="module")
def random_runs() -> list[tuple[EpochPlan, list[list[int]], int, list[list[list[int]]]]]:
    """Many random epochs, each stopped and continued on other world sizes."""
    draw = random.Random(20)
    runs = []
    for _ in range(CASES):
        plan = random_plan(draw)
        runs.append((plan, *train(plan, draw, stops=draw.randint(0, 4))))
    return runs


def test_every_row_is_taken_once_an_epoch_whatever_the_world_sizes(random_runs) -> None:
    """Nothing is dropped or repeated, but for epochs with fewer rows than ranks, which say so."""
    for plan, steps, left_out, _ in random_runs:
        taken = [row for step in steps for row in step]
        assert len(taken) == len(set(taken)) == plan.samples - left_out
        assert left_out < max(WORLD_SIZES)
        if left_out == 0:
            assert sorted(taken) == list(range(plan.samples))


def test_steps_take_the_rows_of_the_one_process_plan(random_runs) -> None:
    """Only a last round with fewer rows than ranks joins the step before it."""
    same = 0
    for plan, steps, left_out, _ in random_runs:
        expected = one_process_steps(plan)
        if left_out:
            continue
        if len(steps) == len(expected):
            assert [sorted(step) for step in steps] == [sorted(step) for step in expected]
            same += 1
            continue
        assert len(steps) == len(expected) - 1
        assert len(expected[-1]) < max(WORLD_SIZES)
        assert sorted(steps[-1]) == sorted(expected[-2] + expected[-1])
    assert same > 0.8 * CASES


def test_filled_up_steps_take_the_rows_of_the_one_process_plan_without_exception() -> None:
    """Whatever the sizes: the same rows in the same order in as many steps, nothing left out."""
    draw = random.Random(21)
    for _ in range(CASES):
        plan = random_plan(draw)
        stops = draw.randint(0, 4)
        steps, left_out, rounds = train(plan, draw, stops=stops, last_round="fill")
        assert steps == one_process_steps(plan)
        assert left_out == 0
        assert all(part for parts in rounds for part in parts)


def test_ranks_get_equally_many_batches_and_none_is_empty(random_runs) -> None:
    """Otherwise a rank would wait for the others for ever."""
    for _, _, _, rounds in random_runs:
        for parts in rounds:
            assert all(parts)


def test_a_split_round_is_even_for_batches_of_one_size() -> None:
    """The pieces of the last round differ by one row at most."""
    draw = random.Random(3)
    for _ in range(300):
        world_size = draw.randint(2, 9)
        plan = cut(np.arange(draw.randint(world_size, 200)), draw.randint(1, 20))
        deal = Deal(plan, world_size)
        if deal.tail is not None:
            sizes = [len(part) for part in deal.tail]
            assert max(sizes) - min(sizes) <= 1
            assert max(sizes) <= int(np.diff(plan.bounds).max()) + 1


def test_a_split_round_of_varying_batches_never_pads_beyond_the_limit() -> None:
    """A piece is a part of one batch; only rows that join a full round may come on top."""
    draw = random.Random(4)
    for _ in range(300):
        lengths = [draw.randint(1, 100) for _ in range(draw.randint(12, 150))]
        sampler = DynamicBatchSampler(
            lengths, 100, num_buckets=4, lengths_list=lengths, seed=draw.randrange(99)
        )
        deal = Deal(sampler.plan(), draw.choice([2, 3, 4]))
        if deal.tail is None or deal.full_rounds * deal.world_size + deal.world_size > len(sampler):
            for number in range(deal.rounds):
                for rank in range(deal.world_size):
                    durations = sampler.get_durations(deal.rows(number, rank)[1])
                    assert max(durations) * len(durations) <= 100


def test_dropping_the_last_leaves_every_batch_whole() -> None:
    """With drop_last an incomplete micro-batch and an incomplete round are left out."""
    plan = cut(np.arange(47), 5, drop_last=True)
    assert plan.batches == 9
    deal = Deal(plan, 4, drop_last=True)
    assert (deal.rounds, deal.left_out) == (2, 5)
    assert {len(deal.rows(i, r)[1]) for i in range(2) for r in range(4)} == {5}


def test_rows_fewer_than_ranks_join_the_round_before() -> None:
    """Nine rows in fours on three ranks: one round of three each."""
    deal = Deal(cut(np.arange(13), 4), 3)
    assert deal.rounds == 1
    assert [deal.rows(0, rank)[1] for rank in range(3)] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11, 12],
    ]  # fmt: skip


def test_fewer_rows_than_ranks_in_all_are_refused() -> None:
    """There is nothing that they could join, and nothing is lost in silence."""
    deal = Deal(cut(np.arange(2), 4), 3)
    assert (deal.rounds, deal.left_out) == (0, 2)
    with pytest.raises(ValueError, match=r"each of 3 ranks .*got 2: use at most 2 .*'fill'"):
        deal.check()
    Deal(cut(np.arange(2), 4), 3, drop_last=True).check()


def test_a_filled_up_round_hands_out_what_is_left_whole_and_some_of_it_again() -> None:
    """Seven micro-batches on five ranks: the last three of the second round are fillers."""
    deal = Deal(cut(np.arange(13), 2), 5, last_round="fill")
    assert (deal.rounds, deal.full_rounds, deal.fillers, deal.left_out) == (2, 1, 3, 0)
    last = [deal.rows(1, rank) for rank in range(5)]
    whole, short = (10, [10, 11]), (12, [12])
    assert last == [whole, short, whole, short, whole]
    assert [deal.is_filler(1, rank) for rank in range(5)] == [False, False, True, True, True]
    assert not any(deal.is_filler(0, rank) for rank in range(5))
    assert [deal.fillers_in(0), deal.fillers_in(1)] == [0, 3]


def test_a_filled_up_plan_is_reached_at_the_end_of_every_round() -> None:
    """No round is joined, so nothing stands in the way of any number of ranks."""
    plan = cut(np.arange(65), 5)
    for world_size in (1, 2, 3, 4, 6, 12):
        deal = Deal(plan, world_size, last_round="fill")
        assert deal.rounds_done(12) == 12 // world_size
        assert deal.position(deal.rounds) == plan.batches
    with pytest.raises(ValueError, match=r"5 ranks .*got micro-batch 12 of 13.*6, 12\]"):
        Deal(plan, 5, last_round="fill").rounds_done(12)


def test_dealing_from_the_middle_takes_what_is_left_once() -> None:
    """A regrouped run repeats nothing and misses nothing."""
    plan = cut(np.arange(103), 4)
    deal = Deal(plan, 3, start=7)
    taken = [row for i in range(deal.rounds) for r in range(3) for row in deal.rows(i, r)[1]]
    assert sorted(taken) == list(range(28, 103))


def test_a_position_between_rounds_is_refused_with_the_sizes_that_reach_it() -> None:
    """The error lists what can be used instead."""
    deal = Deal(cut(np.arange(100), 2), 4)
    with pytest.raises(ValueError, match=r"4 ranks .*got micro-batch 6 .*\[1, 2, 3, 6\]"):
        deal.rounds_done(6)
    assert valid_world_sizes(12) == [1, 2, 3, 4, 6, 12]


def test_rows_that_would_have_joined_a_round_already_taken_are_not_lost() -> None:
    """Six ranks cannot go on where five rows are left, and say so; three can."""
    plan = cut(np.arange(65), 5)
    assert Deal(plan, 3).rounds_done(12) == 4
    with pytest.raises(ValueError, match=r"6 ranks .*got micro-batch 12 of 13.*\[1, 2, 3, 4\]"):
        Deal(plan, 6).rounds_done(12)


def test_a_round_beyond_the_last_is_an_index_error() -> None:
    """A deal does not wrap around."""
    with pytest.raises(IndexError, match="below 3 is required, got 3"):
        Deal(cut(np.arange(10), 4), 1).rows(3, 0)


def test_a_plan_of_listed_batches_keeps_keys_of_any_kind() -> None:
    """Rows need not be integers."""
    plan = from_batches([["a", "b"], ["c"]])
    assert [plan.batch(0), plan.batch(1)] == [["a", "b"], ["c"]]
    assert as_order([True, False]) == [True, False]


def test_the_checksum_tells_orders_and_cuts_apart() -> None:
    """Both decide which rows a batch holds."""

    def variants() -> Iterator[EpochPlan]:
        yield cut(np.arange(10), 2)
        yield cut(np.arange(10), 5)
        yield cut(np.arange(10)[::-1], 2)
        yield from_batches([["a"], ["b"]])
        yield from_batches([["a", "b"]])

    sums = [plan.checksum() for plan in variants()]
    assert len(set(sums)) == len(sums)
    assert sums == [plan.checksum() for plan in variants()]
