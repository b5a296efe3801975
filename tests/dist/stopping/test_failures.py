"""An exception of one rank reaches all ranks."""

import os
import signal
import time

import pytest
import torch
from torch import distributed

import brain_dist
from brain_dist import RanksLostError, propagate_failures


class AgreedError(Exception):
    """Raised on all ranks, which have agreed on it."""


def test_in_one_process_an_exception_passes_unchanged():
    """It needs no store."""
    with pytest.raises(KeyError) as caught, propagate_failures():
        raise KeyError("a batch")
    assert caught.value.__cause__ is None


def _fail(rank, how, grace_s):
    """Leave the block on rank 1 while the others wait in a collective of the default group."""
    try:
        with propagate_failures(grace_s=grace_s):
            if rank == 1:
                if how == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise SystemExit(75) if how == "exits" else KeyError("a batch")
            distributed.all_reduce(torch.ones(2))
    except KeyError as error:
        if rank == 1 and how == "ends":
            os._exit(1)
        return str(error), str(error.__cause__)
    except RanksLostError as error:
        return str(error), ""
    return "nothing happened", ""


def test_the_end_of_a_failed_rank_wakes_the_others_with_its_exception(ranks):
    """At once; the cause holds the traceback of the rank that raised it."""
    started = time.monotonic()
    outcomes = ranks.outcomes(_fail, 3, "ends", 30.0)
    assert time.monotonic() - started < 20
    for rank in (0, 2):
        kind, (text, cause) = outcomes[rank]
        assert (kind, text) == ("returned", "'a batch (on rank 1 of 3)'")
        assert "raised on rank 1" in cause
        assert "in _fail" in cause


@pytest.mark.parametrize(("how", "code"), [("stays alive", 1), ("exits", 75)])
def test_ranks_do_not_wait_for_a_rank_that_raised_and_stays_alive(ranks, how, code):
    """They cannot be woken, and exit with the code of the exception."""
    outcomes = ranks.outcomes(_fail, 3, how, 0.5)
    assert outcomes[0] == outcomes[2] == ("exited", code)


def test_a_killed_rank_is_named(ranks):
    """It left no report, and the others did."""
    outcomes = ranks.outcomes(_fail, 3, "killed", 30.0)
    for rank in (0, 2):
        kind, (text, _) = outcomes[rank]
        assert kind == "returned"
        assert f"got on rank {rank}: rank(s) 1 did not" in text


def _raise_on_both(rank):
    for raised in (AgreedError(), ValueError("on all")):
        with pytest.raises(type(raised)) as caught, propagate_failures(AgreedError, grace_s=0.5):
            raise raised
        assert caught.value is raised
        time.sleep(2.0 * rank)  # the others have left the block, and no watch ends them
    with propagate_failures(grace_s=0.5):
        time.sleep(2.0)
        return brain_dist.gather_objects(rank)


def test_ranks_can_continue_after_an_exception_that_all_of_them_raise(ranks):
    """Agreed on or not; the failure of an earlier block does not end a later one."""
    assert ranks(_raise_on_both, 2) == [[0, 1], [0, 1]]


def _nest(rank):
    try:
        with propagate_failures(), propagate_failures():
            _wait_for_the_other(rank)
    except KeyError as error:
        if rank == 1:
            os._exit(1)
        return str(error)


def _wait_for_the_other(rank):
    if rank == 1:
        raise KeyError("a batch")
    distributed.all_reduce(torch.ones(2))


def test_blocks_nest(ranks):
    """The rank is named once."""
    assert ranks.outcomes(_nest, 2)[0] == ("returned", "'a batch (on rank 1 of 2)'")
