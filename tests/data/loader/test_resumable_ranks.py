"""ResumableLoader on several gloo ranks: batches are sharded, and runs resume exactly."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for ranks, which have no conftest

from data_helpers import keep, saved_state
from loader_kinds import EPOCHS, KINDS, ROWS, Stream, resume, seed_everything, train, train_step
from torch.utils.data import DataLoader, DistributedSampler

from brain_data import ResumableLoader, ResumeError
from brain_dist import gather_objects, get_rank, get_world_size

SHARDED = [
    *("shuffle", "persistent", "generator", "weighted", "subset", "replacement", "batch sampler"),
    *("no batches", "shuffles by random", "shuffles by numpy", "draws one by one", "counts passes"),
]
OTHERS = ["distributed", "stream", "wrapper", "list"]


def run_killed(_store: Any, kinds: list[str], workers: int) -> dict[str, Any]:
    """Train, then resume from the state of each epoch; return for each kind what was wrong."""
    import multiprocessing
    import warnings

    multiprocessing.set_start_method("fork", force=True)  # of workers; a rank has another one
    warnings.filterwarnings("ignore", message="This (process|DataLoader)")
    wrong: dict[str, Any] = {}
    for kind in kinds:
        seed_everything(1 + 10 * get_rank())
        whole, states = train(kind, workers, after=2, last_round="pad")
        for epoch in EPOCHS:
            state, _, done = states[epoch]
            texts = set(gather_objects(json.dumps(state)))
            rest = resume(kind, workers, epoch, states[epoch], last_round="pad")
            if rest != whole[done:]:
                wrong[f"{kind}, epoch {epoch}"] = rest, whole[done:]
            if kind in SHARDED and len(texts) > 1:
                wrong[f"{kind}, state of epoch {epoch}"] = "not the same on all ranks"
    return wrong


@pytest.mark.parametrize(
    ("workers", "world_size", "kinds"),
    [(0, 2, SHARDED + OTHERS), (0, 3, SHARDED + OTHERS), (2, 2, [*SHARDED[:3], *OTHERS[:2]])],
)
def test_a_run_killed_in_any_epoch_resumes_with_the_batches_left(
    ranks: Any, workers: int, world_size: int, kinds: list[str]
) -> None:
    """On each rank, with sharding and without."""
    assert ranks(run_killed, world_size, kinds, workers, timeout_s=200) == [{}] * world_size


def batches_of_all_ranks(_store: Any, kind: str) -> list[Any]:
    """Return the batches of each epoch in the order of all ranks, without padding batches."""
    seed_everything(1)
    loader = ResumableLoader(KINDS[kind](0), last_round="pad")
    epochs = []
    for epoch in EPOCHS:
        loader.set_epoch(epoch)
        seen = [None if loader.is_padding else batch for batch in loader]
        rounds = zip(*gather_objects(seen), strict=True)
        epochs.append([batch for each in rounds for batch in each if batch is not None])
    return epochs


@pytest.mark.parametrize("kind", SHARDED)
def test_a_step_has_the_same_samples_on_any_number_of_ranks(ranks: Any, kind: str) -> None:
    """Rows and noise, in every epoch, if training draws nothing from the global generators."""
    one = batches_of_all_ranks(None, kind)
    for world_size in (2, 3):
        assert ranks(batches_of_all_ranks, world_size, kind) == [one] * world_size


def resume_on_more_ranks(_store: Any, kind: str, state: dict[str, Any]) -> list[Any]:
    loader = ResumableLoader(KINDS[kind](0), last_round="pad")
    loader.load_state_dict(state)
    seen = [None if loader.is_padding else batch for batch in loader]
    rounds = zip(*gather_objects(seen), strict=True)
    return [batch for each in rounds for batch in each if batch is not None]


@pytest.mark.parametrize("kind", ["shuffle", "weighted", "draws one by one"])
def test_another_number_of_ranks_takes_the_batches_left(ranks: Any, kind: str) -> None:
    """Two batches of one rank are one round of two, and back."""
    seed_everything(1)
    loader = ResumableLoader(KINDS[kind](0))
    batches = iter(loader)
    head = [next(batches), next(batches)]
    state = saved_state(loader)
    rest = list(batches)
    assert ranks(resume_on_more_ranks, 2, kind, state) == [rest] * 2
    with pytest.raises(AssertionError, match="world size that divides the 2 micro-batches"):
        ranks(resume_on_more_ranks, 3, kind, state)
    states = ranks(state_after_a_round, 2, kind)
    again = ResumableLoader(KINDS[kind](0))
    again.load_state_dict(states[0])
    assert head + list(again) == head + rest


def state_after_a_round(_store: Any, kind: str) -> dict[str, Any]:
    seed_everything(1)
    loader = ResumableLoader(KINDS[kind](0))
    next(iter(loader))
    return saved_state(loader)


def sampled(_store: Any, kind: str, shard: bool) -> tuple[Any, ...]:
    """Return the rows of an epoch on this rank, and what was logged."""
    import logging

    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(f"{record.levelname} {record.getMessage()}")
    logging.getLogger("brain_data").addHandler(handler)
    logging.getLogger("brain_data").setLevel(logging.INFO)
    loader = {
        "plain": lambda: DataLoader(range(12), batch_size=2, collate_fn=keep),
        "distributed": lambda: DataLoader(
            range(12),
            batch_size=2,
            collate_fn=keep,
            sampler=DistributedSampler(range(12), get_world_size(), get_rank(), shuffle=False),
        ),
        "stream": lambda: DataLoader(Stream(), batch_size=2, collate_fn=keep),
        "list": lambda: [[0, 1], [2]],
    }[kind]()
    resumable = ResumableLoader(loader, shard=shard)
    batches = [batch for _ in range(2) for batch in resumable]
    return len(batches), resumable.is_sharded, resumable.state_is_per_rank, records


@pytest.mark.parametrize(
    ("kind", "shard", "batches", "is_sharded", "says"),
    [
        ("plain", True, 6, True, "INFO The batches of the DataLoader are assigned to 2 ranks"),
        ("plain", False, 12, False, None),
        ("distributed", True, 6, False, None),
        ("stream", True, 22, False, "WARNING DataLoader cannot be sharded among ranks"),
        ("list", True, 4, False, "WARNING list cannot be sharded among ranks"),
    ],
)
def test_only_what_is_not_sharded_yet_is_sharded_and_the_log_says_so(
    ranks: Any, kind: str, shard: bool, batches: int, is_sharded: bool, says: str | None
) -> None:
    """In one line, once."""
    for found in ranks(sampled, 2, kind, shard):
        assert found[:3] == (batches, is_sharded, not is_sharded)
        assert len(found[3]) == (says is not None)
        assert all(line.startswith(says) for line in found[3])


def test_the_state_of_one_rank_names_the_loader_that_it_belongs_to() -> None:
    """A state of the wrong kind is refused."""
    with pytest.raises(ResumeError, match="state of a RowSource of format 1 is required"):
        ResumableLoader(DataLoader(range(ROWS))).load_state_dict({"format": 1, "kind": "X"})
    assert isinstance(train_step()[0], float)
    assert torch.get_num_threads() >= 1
