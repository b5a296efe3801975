"""The keyed order: a permutation of any number of rows, of which any part can be computed."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from data_helpers import saved_state
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from brain_data import (
    DistributedSamplerWrapper,
    KeyedRandomSampler,
    distributed_loader_specifics,
    make_dataloader,
)
from brain_data.order.keyed import KeyedOrder
from brain_data.order.plan import split_into_batches
from brain_data.order.sharding import ShardedPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

WEB = 10_000_000_000

near_squares = st.integers(1, 60).flatmap(lambda root: st.integers(root**2 - 1, root**2 + 1))
sizes = st.one_of(st.integers(0, 40), st.integers(0, 5000), near_squares)
seeds = st.integers(-(2**40), 2**64)


def chi_squared(counts: Sequence[int] | np.ndarray, cells: int) -> float:
    """Return by how many standard deviations the statistic exceeds that of even cells."""
    found = np.asarray(counts, dtype=np.float64)
    expected = found.sum() / cells
    statistic = ((found - expected) ** 2).sum() / expected + (cells - len(found)) * expected
    return float((statistic - (cells - 1)) / math.sqrt(2 * (cells - 1)))


@given(rows=sizes, seed=seeds, epoch=st.integers(0, 1000))
def test_every_row_comes_once_for_any_number_of_rows(rows: int, seed: int, epoch: int) -> None:
    """The order is a permutation."""
    assert sorted(KeyedOrder(rows, seed, epoch)[:].tolist()) == list(range(rows))


@given(rows=st.integers(1, 5000), seed=seeds, data=st.data())
def test_any_part_is_that_part_of_the_whole(rows: int, seed: int, data: Any) -> None:
    """Slices, single places and lists of places are computed without the rest."""
    order = KeyedOrder(rows, seed, 1)
    whole = list(order)
    part = data.draw(st.slices(rows))
    places = data.draw(st.lists(st.integers(0, rows - 1)))
    assert order[:].tolist() == whole
    assert order[part].tolist() == whole[part]
    assert order[places].tolist() == [whole[place] for place in places]
    assert order[rows - 1] == order[-1] == whole[-1]


@given(rows=st.integers(1, 2**62), seed=seeds, data=st.data())
def test_different_places_have_different_rows_at_any_size(rows: int, seed: int, data: Any) -> None:
    """Sets of 2 ** 62 rows are the largest."""
    places = data.draw(st.lists(st.integers(0, rows - 1), unique=True, min_size=1))
    taken = KeyedOrder(rows, seed, 0)[places].tolist()
    assert len(set(taken)) == len(places)
    assert 0 <= min(taken) <= max(taken) < rows


def test_the_order_does_not_change_with_a_version() -> None:
    """A run that was stopped resumes in the order in which it began."""
    assert list(KeyedOrder(10, 563375142, 1)) == [6, 3, 2, 0, 4, 8, 5, 9, 7, 1]
    assert KeyedOrder(WEB, 7, 3)[[0, 1, WEB // 2, WEB - 1]].tolist() == [
        633098796,
        3119274246,
        87589263,
        869427319,
    ]


def test_seed_epoch_and_number_of_rows_each_give_another_order() -> None:
    """Seed 1 in epoch 2 is not seed 2 in epoch 1, either."""
    keys = [(1000, 1, 1), (1000, 1, 2), (1000, 2, 1), (1001, 1, 1), (999, 1, 1)]
    orders = [KeyedOrder(*key)[:999] for key in keys]
    for one, other in itertools.combinations(orders, 2):
        assert (one == other).mean() < 0.02


def test_too_many_rows_are_refused() -> None:
    """The arithmetic is that of 64 bits."""
    with pytest.raises(ValueError, match=r"at most 2 \*\* 62 rows .* got 4611686018427387905"):
        KeyedOrder(2**62 + 1, 0, 0)


@pytest.mark.parametrize("rows", [3, 4])
def test_every_order_of_a_few_rows_occurs_equally_often(rows: int) -> None:
    """A network of too few rounds prefers some of them."""
    counts = Counter(tuple(KeyedOrder(rows, 5, epoch)[:].tolist()) for epoch in range(2400))
    assert abs(chi_squared(list(counts.values()), math.factorial(rows))) < 4


def test_rows_are_spread_evenly_over_places_and_over_their_neighbours() -> None:
    """Chi-squared of each place's row, and of the difference of successive rows."""
    rows, cells, epochs = 10_000, 20, 50
    width = rows // cells
    by_place, by_step = np.zeros((cells, cells)), np.zeros(cells)
    for epoch in range(epochs):
        order = KeyedOrder(rows, 11, epoch)[:]
        np.add.at(by_place, (np.arange(rows) // width, order // width), 1)
        by_step += np.bincount(np.diff(order) % rows // width, minlength=cells)
    # Rows of a permutation are not independent: each margin of the table is fixed.
    freedom = (cells - 1) ** 2
    expected = epochs * width / cells
    statistic = ((by_place - expected) ** 2).sum() / expected
    assert abs(statistic - freedom) / math.sqrt(2 * freedom) < 4
    assert abs(chi_squared(by_step, cells)) < 4


@pytest.mark.long
def test_a_million_rows_are_uniform_over_a_hundred_seeds() -> None:
    """Places, successive rows, ascents and rows that stay in place."""
    rows, cells, count = 1_000_000, 100, 100
    width = rows // cells
    by_place, by_step = np.zeros(cells * cells), np.zeros(cells)
    ascents, fixed = 0, 0
    place = np.arange(rows) // width * cells
    for seed in range(count):
        order = KeyedOrder(rows, seed, 0)[:]
        assert np.bincount(order, minlength=rows).max() == 1
        by_place += np.bincount(place + order // width, minlength=cells * cells)
        by_step += np.bincount(np.diff(order) % rows // width, minlength=cells)
        ascents += int((np.diff(order) > 0).sum())
        fixed += int((order == np.arange(rows)).sum())
    freedom, expected = (cells - 1) ** 2, count * width / cells
    # Of a random permutation the statistic of the table has this mean, up to 1 / rows.
    statistic = ((by_place - expected) ** 2).sum() / expected
    assert abs(statistic - freedom) / math.sqrt(2 * freedom) < 4
    assert abs(chi_squared(by_step, cells)) < 4
    assert abs(ascents - count * rows / 2) < 4 * math.sqrt(count * rows / 12)
    assert abs(fixed - count) < 4 * math.sqrt(count)


@settings(max_examples=50)
@given(
    rows=st.integers(1, 3000),
    batch_size=st.integers(1, 70),
    world_size=st.integers(1, 9),
    drop_last=st.booleans(),
    last_round=st.sampled_from(["split", "pad"]),
    data=st.data(),
)
def test_batches_are_those_of_a_table_of_the_same_order(
    rows: int, batch_size: int, world_size: int, drop_last: bool, last_round: Any, data: Any
) -> None:
    """Batch by batch, on any rank and from any round on."""
    order = KeyedOrder(rows, 3, 1)
    lazy = split_into_batches(order, batch_size, drop_last=drop_last)
    table = split_into_batches(order[:], batch_size, drop_last=drop_last)
    assert np.asarray(lazy.bounds).tolist() == list(table.bounds[:])
    kinds = [
        ShardedPlan(plan, world_size, 0, drop_last and last_round == "split", last_round)
        for plan in (lazy, table)
    ]
    rank = data.draw(st.integers(0, world_size - 1))
    first = data.draw(st.integers(0, kinds[1].num_rounds))
    expected = [kinds[1].rows(number, rank) for number in range(first, kinds[1].num_rounds)]
    assert list(kinds[0].batches(first, rank)) == expected
    assert list(kinds[1].batches(first, rank)) == expected


def test_torchs_own_loader_takes_the_sampler() -> None:
    """It yields each row once."""
    loader = DataLoader(range(5000), batch_size=64, sampler=KeyedRandomSampler(range(5000)))
    assert len(loader) == 79
    assert sorted(row for batch in loader for row in batch.tolist()) == list(range(5000))


def test_a_wrapper_shuffles_a_keyed_order_too() -> None:
    """It asks for the rows at the places of its own permutation."""
    sampler = KeyedRandomSampler(range(100))
    wrapped = DistributedSamplerWrapper(sampler, 1, 0, shuffle=True, seed=5)
    assert list(wrapped) == wrapped.order().tolist() != list(sampler)


def test_ten_billion_rows_take_less_than_a_megabyte() -> None:
    """The position is in the middle of the epoch, and saved and loaded."""
    make_dataloader(range(9), shuffle="keyed")  # what is imported and cached once
    state = {
        **saved_state(make_dataloader(range(WEB), batch_size=8, shuffle="keyed")),
        "position": WEB // 16,
    }
    tracemalloc.start()
    try:
        loader = make_dataloader(range(WEB), batch_size=8, shuffle="keyed")
        loader.load_state_dict(state)
        batch = next(iter(loader))
        saved_state(loader)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    low = WEB // 16 * 8
    assert batch.tolist() == KeyedOrder(WEB, 563375142, 0)[low : low + 8].tolist()
    assert len(loader) == WEB // 8
    assert peak < 1_000_000


@pytest.mark.parametrize("rank", [0, 1234, 4095])
def test_one_rank_of_4096_resumes_at_every_tenth_of_ten_billion_rows(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its batches are those of the order at its places, the last round included."""
    monkeypatch.setattr("brain_data.order.distributed.get_world_size", lambda: 4096)
    monkeypatch.delenv("SB_GLOBAL_SEED", raising=False)
    batch_size = 48
    rounds = -(-WEB // batch_size) // 4096
    order = KeyedOrder(WEB, 563375142, 5)
    for tenth in range(10):
        kwargs = {"batch_size": batch_size, "shuffle": "keyed"}
        specifics = distributed_loader_specifics(True, rank, range(WEB), kwargs)  # noqa: FBT003
        loader = make_dataloader(range(WEB), **specifics)
        loader.set_epoch(5)
        first = rounds * tenth // 10
        loader.load_state_dict({**saved_state(loader), "position": first * 4096})
        batches = iter(loader)
        for number in (first, first + 1, first + 2):
            low = (number * 4096 + rank) * batch_size
            assert next(batches).tolist() == order[low : low + batch_size].tolist()
        assert saved_state(loader)["position"] == (first + 3) * 4096
    loader.load_state_dict({**saved_state(loader), "position": rounds * 4096})
    last = [batch.tolist() for batch in loader]
    left = WEB - rounds * 4096 * batch_size
    shares = [rounds * 4096 * batch_size + left * part // 4096 for part in (rank, rank + 1)]
    assert last == [order[shares[0] : shares[1]].tolist()]
