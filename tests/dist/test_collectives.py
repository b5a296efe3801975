"""Collectives of objects, tensors and errors."""

import os
import pickle
import signal
import time

import pytest
import torch
from torch import distributed

import brain_dist


def _gather(rank):
    return brain_dist.gather_objects({"rank": rank, "long": "x" * 1000 * rank})


def test_gather_objects_returns_every_ranks_object_in_rank_order(ranks):
    """Objects of unequal size arrive complete on every rank."""
    expected = [{"rank": rank, "long": "x" * 1000 * rank} for rank in range(3)]
    assert ranks(_gather, 3) == [expected] * 3


def _gather_on_second(rank):
    return brain_dist.gather_objects({"rank": rank, "long": "x" * 1000 * rank}, dst=1)


def test_gather_objects_may_send_to_one_rank_only(ranks):
    """Which gets the objects of unequal size complete; the others get an empty list."""
    expected = [{"rank": rank, "long": "x" * 1000 * rank} for rank in range(3)]
    assert ranks(_gather_on_second, 3) == [[], expected, []]


def _gather_with_error(rank, dst):
    error = OSError(f"rank {rank}") if rank else None
    try:
        brain_dist.gather_objects(rank, dst, error)
    except OSError as caught:
        return str(caught), brain_dist.gather_objects(rank)
    return None


@pytest.mark.parametrize("dst", [None, 0, 2])
def test_an_error_in_place_of_an_object_is_raised_on_every_rank(ranks, dst):
    """It is that of the lowest failing rank; the ranks are still in step."""
    expected = ("rank 1 (on rank 1, 2 of 3)", [0, 1, 2])
    assert ranks(_gather_with_error, 3, dst) == [expected] * 3


def test_in_one_process_every_collective_returns_its_argument():
    """One process needs no group."""
    value, tensor = object(), torch.ones(2)
    brain_dist.ddp_barrier()
    assert brain_dist.ddp_broadcast(value) is value
    assert brain_dist.ddp_all_reduce(tensor, distributed.ReduceOp.SUM) is tensor
    assert brain_dist.gather_objects(value) == [value]
    assert brain_dist.sum_over_ranks([1, 2.5]) == [1.0, 2.5]
    brain_dist.raise_on_all_ranks(None)
    brain_dist.set_control_timeout(1.0)
    brain_dist.check_same_modules({})
    assert tensor.tolist() == [1, 1]


def test_in_one_process_raise_on_all_ranks_raises_the_error_itself():
    """The same object, not a copy."""
    error = KeyError("k")
    with pytest.raises(KeyError) as caught:
        brain_dist.raise_on_all_ranks(error)
    assert caught.value is error
    with pytest.raises(KeyError) as caught:
        brain_dist.gather_objects(None, error=error)
    assert caught.value is error


def _broadcast(rank):
    sent = {"big": torch.arange(5) + rank, "text": "y" * 5000}
    received = brain_dist.ddp_broadcast(sent, src=1)
    return received["big"].tolist(), len(received["text"]), received is sent


def test_ddp_broadcast_sends_the_object_of_its_source(ranks):
    """The source keeps the same object, not a copy."""
    assert ranks(_broadcast, 2) == [([1, 2, 3, 4, 5], 5000, r == 1) for r in range(2)]


def _all_reduce(rank):
    total = brain_dist.ddp_all_reduce(torch.tensor([rank + 1.0]), distributed.ReduceOp.SUM)
    mean = brain_dist.ddp_all_reduce(torch.tensor([rank + 1.0]), distributed.ReduceOp.AVG)
    return total.item(), mean.item()


def test_ddp_all_reduce_sums_and_averages_on_gloo(ranks):
    """Gloo itself has no AVG."""
    assert ranks(_all_reduce, 2) == [(3.0, 1.5)] * 2


def _send_unpicklable(rank, how):
    value = (lambda: None) if rank == 0 else 1
    try:
        if how == "broadcast":
            brain_dist.ddp_broadcast(value)
        else:
            brain_dist.gather_objects(value, dst=1 if how == "gather on one rank" else None)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        caught = error
    # The ranks are still in step.
    return type(caught).__name__, brain_dist.gather_objects(rank)


@pytest.mark.parametrize("how", ["broadcast", "gather", "gather on one rank"])
def test_an_object_that_cannot_be_pickled_is_an_error_on_every_rank(ranks, how):
    """No rank is left waiting, and the next collective works."""
    results = ranks(_send_unpicklable, 2, how)
    assert results[0] == results[1]
    assert results[0][0] in ("PicklingError", "AttributeError")
    assert results[0][1] == [0, 1]


def _sum(rank):
    return brain_dist.sum_over_ranks([1e16 if rank == 0 else (1.0 if rank < 3 else -1e16), 0.1])


def test_sum_over_ranks_rounds_once(ranks):
    """Added one after the other, the ones would be rounded away."""
    assert ranks(_sum, 4) == [[2.0, 0.4]] * 4


def _sum_unequal(rank):
    with pytest.raises(ValueError, match=r"equally many values, got \[0, 1\]"):
        brain_dist.sum_over_ranks([1.0] * rank)
    return True


def test_sum_over_ranks_refuses_unequal_numbers_of_values(ranks):
    """On every rank."""
    assert ranks(_sum_unequal, 2) == [True, True]


class _UnpicklableError(Exception):
    def __init__(self, code, path):
        super().__init__(f"{code} at {path}")


def _fail(rank, kind):
    errors = {
        "text": ValueError("no weights"),
        "arguments": FileNotFoundError(2, "No such file", "x.ckpt"),
        "unpicklable": _UnpicklableError(3, "there"),
    }
    try:
        brain_dist.raise_on_all_ranks(errors[kind] if rank in (1, 2) else None)
    except (ValueError, OSError, RuntimeError, _UnpicklableError) as error:
        return (
            type(error).__name__,
            str(error),
            type(error.__cause__).__name__,
            str(error.__cause__),
        )
    return None


def test_an_error_on_some_ranks_is_raised_on_all_with_their_numbers(ranks):
    """Type and text are the same on all ranks; the text names the failed ones."""
    results = ranks(_fail, 3, "text")
    expected = ("ValueError", "no weights (on rank 1, 2 of 3)", "RemoteError")
    assert [result[:3] for result in results] == [expected] * 3
    assert "raised on rank(s) [1, 2]" in results[0][3]


def test_an_error_with_several_arguments_keeps_them(ranks):
    """An OSError keeps its errno and its file; its cause names the ranks."""
    results = ranks(_fail, 3, "arguments")
    expected = ("FileNotFoundError", "[Errno 2] No such file: 'x.ckpt'", "RemoteError")
    assert [result[:3] for result in results] == [expected] * 3


def test_an_error_that_cannot_be_pickled_is_quoted(ranks):
    """An exception whose constructor takes more than its text becomes a RuntimeError."""
    results = ranks(_fail, 3, "unpicklable")
    assert results[0][0] == "RuntimeError"
    assert results[0][1] == "_UnpicklableError: 3 at there (on rank 1, 2 of 3)"


def _no_error(rank):
    brain_dist.raise_on_all_ranks(None)
    brain_dist.ddp_barrier()
    return rank


def test_raise_on_all_ranks_returns_if_no_rank_has_an_error(ranks):
    """The ranks continue."""
    assert ranks(_no_error, 2) == [0, 1]


def _lose_rank_1(rank, how):
    brain_dist.set_control_timeout(1.0)
    store = distributed.distributed_c10d._get_default_store()
    store.set(f"ready/{rank}", "ready")
    store.wait([f"ready/{other}" for other in range(3)])
    if rank == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(6)
        return None
    started = time.monotonic()
    with pytest.raises(brain_dist.RanksLostError) as caught:
        brain_dist.gather_objects(rank)
    return str(caught.value), time.monotonic() - started


@pytest.mark.parametrize("how", ["killed", "stuck"])
def test_a_rank_that_does_not_take_part_is_named_on_all_others(ranks, how):
    """The error says which rank, after how long, and what to do; within the timeout and 3 s."""
    outcomes = ranks.outcomes(_lose_rank_1, 3, how)
    for kind, value in (outcomes[0], outcomes[2]):
        assert kind == "returned", value
        text, took_s = value
        assert "has to reach gather_objects within 1 s" in text
        assert "rank(s) 1 did not" in text
        assert took_s < 8


def test_a_timeout_is_above_zero():
    """With zero every operation would fail at once."""
    with pytest.raises(ValueError, match=r"above zero seconds, got 0; try"):
        brain_dist.set_control_timeout(0)
