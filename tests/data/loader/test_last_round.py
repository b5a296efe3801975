"""SaveableDataLoader on several ranks where fewer micro-batches are left than there are ranks."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
from torch.utils.data import BatchSampler

from brain_data import (
    DistributedSamplerWrapper,
    LoopedLoader,
    ReproducibleRandomSampler,
    SaveableDataLoader,
    distributed_loader_specifics,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


def keep(rows: list[int]) -> list[int]:
    return rows


def on_rank(rank: int, world_size: int, rows: int, *, last_round: str = "fill", **kwargs: Any):
    batches = BatchSampler(ReproducibleRandomSampler(range(rows), seed=1), 4, drop_last=False)
    sampler = DistributedSamplerWrapper(batches, num_replicas=world_size, rank=rank)
    return SaveableDataLoader(
        range(rows), batch_sampler=sampler, collate_fn=keep, last_round=last_round, **kwargs
    )


def micro_batches(rows: int) -> list[list[int]]:
    """The epoch as one process sees it."""
    return list(on_rank(0, 1, rows))


def marked(loader: Any) -> list[tuple[list[int], bool, int]]:
    """Each batch with what the loader says of it."""
    return [(batch, loader.is_filler, loader.fillers) for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_filler_is_said_to_be_one_when_it_is_handed_out(workers: int) -> None:
    """Though workers fetch far ahead: 9 micro-batches on 4 ranks leave 3 of them a filler."""
    whole = micro_batches(33)
    for rank in range(4):
        loader = on_rank(rank, 4, 33, num_workers=workers)
        assert len(loader) == 3
        assert not loader.is_filler
        assert marked(loader) == [
            (whole[rank], False, 0),
            (whole[4 + rank], False, 0),
            (whole[8], rank > 0, 3),
        ]


def test_an_epoch_with_fewer_micro_batches_than_ranks_is_filled_up() -> None:
    """One row is enough for six ranks."""
    for rank in range(6):
        assert marked(on_rank(rank, 6, 1)) == [([0], rank > 0, 5)]


def test_what_is_left_after_a_regroup_is_filled_up_too() -> None:
    """From micro-batch 2 on three ranks, of five: one round of three."""
    first = on_rank(0, 2, 20)
    next(iter(first))
    for rank in range(4):
        loader = on_rank(rank, 4, 20, elastic=True)
        loader.load_state_dict(first.state_dict())
        whole = micro_batches(20)
        assert marked(loader) == [(whole[2 + rank % 3], rank == 3, 1)]
        assert loader.state_dict()["position"] == 5


def test_positions_and_states_are_the_same_on_all_ranks_and_for_both_kinds_of_last_round() -> None:
    """A run may go on with the other one."""
    for batches in (1, 2, 3):
        states = []
        for kind in ("fill", "split"):
            for rank in range(4):
                loader = on_rank(rank, 4, 36, last_round=kind)
                iterator = iter(loader)
                for _ in range(batches):
                    next(iterator)
                states.append(loader.state_dict())
        assert all(state == states[0] for state in states)


def test_a_pass_that_was_over_when_it_was_saved_has_no_filler() -> None:
    """Nothing has been handed out since."""
    loader = on_rank(1, 4, 33)
    list(loader)
    assert loader.is_filler
    again = on_rank(1, 4, 33)
    again.load_state_dict(loader.state_dict())
    assert list(again) == []
    assert (again.is_filler, again.fillers) == (False, 0)


def test_a_loader_can_be_told_later_how_to_deal_the_last_round() -> None:
    """As `Brain` tells one that it is given; from the next pass on."""
    loader = on_rank(1, 4, 36, last_round="split")
    whole = micro_batches(36)
    assert list(loader)[2] == whole[8][1:2]  # its part of four rows
    loader.last_round = "fill"
    assert marked(loader)[2] == (whole[8], True, 3)
    with pytest.raises(ValueError, match=r"last_round must be one of .*got 'repeat'"):
        loader.last_round = "repeat"


def test_drop_last_leaves_out_the_short_micro_batch_only_where_rounds_are_filled_up() -> None:
    """As in one process; split rounds have to be left out as a whole."""
    kwargs = {"batch_size": 4, "drop_last": True, "shuffle": False}
    taken = {}
    for last_round in ("fill", "split"):
        taken[last_round] = []
        for rank in range(4):
            shared = distributed_loader_specifics(True, 0, range(27), kwargs)  # noqa: FBT003
            shared["batch_sampler"].num_replicas, shared["batch_sampler"].rank = 4, rank
            loader = SaveableDataLoader(range(27), collate_fn=keep, last_round=last_round, **shared)
            assert len(loader) == len(list(loader))
            batches = [batch for batch, is_filler, _ in marked(loader) if not is_filler]
            taken[last_round] += [row for batch in batches for row in batch]
    assert sorted(taken["fill"]) == list(range(24))
    assert sorted(taken["split"]) == list(range(16))


def test_a_looped_loader_hands_the_marks_on() -> None:
    """A pass may end within a nominal epoch."""
    looped = LoopedLoader(on_rank(1, 2, 12), 4, batchsize_fn=len)
    assert [(looped.is_filler, looped.fillers) for _ in looped] == [
        (False, 0), (True, 1), (False, 0), (True, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("iterate", [True, False], ids=["the loader", "its sampler"])
def test_a_split_that_leaves_a_rank_without_a_row_is_an_error(iterate: bool) -> None:
    """Two rows on three ranks: nothing is left out in silence."""
    loader = on_rank(1, 3, 2, last_round="split")
    with pytest.raises(ValueError, match=r"each of 3 ranks.*got 2: use at most 2.*'fill'"):
        iter(loader if iterate else loader.batch_sampler)


def test_a_split_after_a_regroup_that_leaves_a_rank_without_a_row_is_an_error() -> None:
    """The round before is behind: rows cannot join it any more."""
    first = on_rank(0, 1, 41, last_round="split")
    list(islice(first, 10))
    loader = on_rank(0, 3, 41, last_round="split", elastic=True)
    loader.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match=r"each of 3 ranks.*got 1: use at most 1"):
        iter(loader)
