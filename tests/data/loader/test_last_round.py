"""SaveableDataLoader on several ranks: rounds with fewer micro-batches than ranks."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
from data_helpers import USES_WORKERS, keep, loader_of_rank

from brain_data import (
    LoopedLoader,
    SaveableDataLoader,
    distributed_loader_specifics,
)

pytestmark = USES_WORKERS


def on_rank(rank: int, world_size: int, rows: int, *, last_round: str = "pad", **kwargs: Any):
    return loader_of_rank(
        rank, world_size, rows, 4, collate_fn=keep, last_round=last_round, **kwargs
    )


def micro_batches(rows: int) -> list[list[int]]:
    """Return the epoch of one process."""
    return list(on_rank(0, 1, rows))


def with_padding(loader: Any) -> list[tuple[list[int], bool, int]]:
    """Return each batch with the loader's attributes after it."""
    return [(batch, loader.is_padding, loader.padding_batches) for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_padding_batch_is_reported_when_it_is_yielded(workers: int) -> None:
    """Workers prefetch: 9 micro-batches on 4 ranks give 3 ranks a padding batch."""
    whole = micro_batches(33)
    for rank in range(4):
        loader = on_rank(rank, 4, 33, num_workers=workers)
        assert len(loader) == 3
        assert not loader.is_padding
        assert with_padding(loader) == [
            (whole[rank], False, 0),
            (whole[4 + rank], False, 0),
            (whole[8], rank > 0, 3),
        ]


def test_an_epoch_with_fewer_micro_batches_than_ranks_is_padded() -> None:
    """One row is enough for six ranks."""
    for rank in range(6):
        assert with_padding(on_rank(rank, 6, 1)) == [([0], rank > 0, 5)]


def test_the_remaining_batches_after_a_regroup_are_padded_too() -> None:
    """Three of five micro-batches remain, for four ranks."""
    first = on_rank(0, 2, 20)
    next(iter(first))
    for rank in range(4):
        loader = on_rank(rank, 4, 20, elastic=True)
        loader.load_state_dict(first.state_dict())
        whole = micro_batches(20)
        assert with_padding(loader) == [(whole[2 + rank % 3], rank == 3, 1)]
        assert loader.state_dict()["position"] == 5


def test_positions_and_states_are_the_same_on_all_ranks_and_for_both_kinds_of_last_round() -> None:
    """A run may be resumed with the other last_round."""
    for batches in (1, 2, 3):
        states = []
        for kind in ("pad", "split"):
            for rank in range(4):
                loader = on_rank(rank, 4, 36, last_round=kind)
                iterator = iter(loader)
                for _ in range(batches):
                    next(iterator)
                states.append(loader.state_dict())
        assert all(state == states[0] for state in states)


def test_a_pass_that_had_ended_when_it_was_saved_has_no_padding_batch() -> None:
    """No batch has been yielded since."""
    loader = on_rank(1, 4, 33)
    list(loader)
    assert loader.is_padding
    again = on_rank(1, 4, 33)
    again.load_state_dict(loader.state_dict())
    assert list(again) == []
    assert (again.is_padding, again.padding_batches) == (False, 0)


def test_last_round_can_be_set_later() -> None:
    """`Brain` sets it on the loader that it is given; it applies from the next pass on."""
    loader = on_rank(1, 4, 36, last_round="split")
    whole = micro_batches(36)
    assert list(loader)[2] == whole[8][1:2]  # its part of four rows
    loader.last_round = "pad"
    assert with_padding(loader)[2] == (whole[8], True, 3)
    with pytest.raises(ValueError, match=r"last_round must be one of .*got 'repeat'"):
        loader.last_round = "repeat"


def test_drop_last_drops_only_the_short_micro_batch_if_rounds_are_padded() -> None:
    """The same is dropped in one process; a split round is dropped as a whole."""
    kwargs = {"batch_size": 4, "drop_last": True, "shuffle": False}
    taken = {}
    for last_round in ("pad", "split"):
        taken[last_round] = []
        for rank in range(4):
            shared = distributed_loader_specifics(True, 0, range(27), kwargs)  # noqa: FBT003
            shared["batch_sampler"].num_replicas, shared["batch_sampler"].rank = 4, rank
            loader = SaveableDataLoader(range(27), collate_fn=keep, last_round=last_round, **shared)
            assert len(loader) == len(list(loader))
            batches = [batch for batch, is_padding, _ in with_padding(loader) if not is_padding]
            taken[last_round] += [row for batch in batches for row in batch]
    assert sorted(taken["pad"]) == list(range(24))
    assert sorted(taken["split"]) == list(range(16))


def test_a_looped_loader_reports_padding_batches() -> None:
    """A pass may end within a nominal epoch."""
    looped = LoopedLoader(on_rank(1, 2, 12), 4, batchsize_fn=len)
    assert [(looped.is_padding, looped.padding_batches) for _ in looped] == [
        (False, 0), (True, 1), (False, 0), (True, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("iterate", [True, False], ids=["the loader", "its sampler"])
def test_a_split_that_leaves_a_rank_without_a_row_is_an_error(iterate: bool) -> None:
    """Two rows on three ranks are not dropped silently."""
    loader = on_rank(1, 3, 2, last_round="split")
    with pytest.raises(ValueError, match=r"each of 3 ranks.*got 2: use at most 2.*'pad'"):
        iter(loader if iterate else loader.batch_sampler)


def test_a_split_after_a_regroup_that_leaves_a_rank_without_a_row_is_an_error() -> None:
    """The preceding round is consumed, so its rows cannot be split again."""
    first = on_rank(0, 1, 41, last_round="split")
    list(islice(first, 10))
    loader = on_rank(0, 3, 41, last_round="split", elastic=True)
    loader.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match=r"each of 3 ranks.*got 1: use at most 1"):
        iter(loader)
