"""Calls that every rank has to make, and ranks that do not."""

import contextlib
import os
import re
import signal
import time

import pytest
import torch
from torch import distributed

import brain_dist
from brain_dist import OutOfStepError, RanksLostError, collective_call

PLACE = r"\S*test_out_of_step\.py:\d+"


def _evaluate():
    with collective_call("evaluate"):
        return "evaluated"


def _fit():
    with collective_call("fit"):
        return "trained"


def _save_in_fit():
    with collective_call("fit"), collective_call("save_checkpoint"):
        return "saved"


def _evaluate_in_fit():
    with collective_call("fit"):
        return _evaluate()


def _barrier():
    brain_dist.ddp_barrier()


def _gather():
    brain_dist.gather_objects(1)


def _broadcast():
    brain_dist.run_on_main(int)


def _raise():
    brain_dist.raise_on_all_ranks(KeyError("a batch"))


def _vote():
    vote = brain_dist.StepVote(every=1)
    for _ in range(3):
        vote.vote(0)


def _all_reduce():
    distributed.all_reduce(torch.ones(1), async_op=True)
    time.sleep(5)


def _end():
    os._exit(0)


def _be_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def _be_late():
    time.sleep(2.5)
    return _evaluate()


def _stay_away():
    time.sleep(5)


def _wait_until_formed(rank, world_size):
    """Return when each rank has the control group: to its forming, one that ends is lost."""
    store = distributed.distributed_c10d._get_default_store()
    store.set(f"formed/{rank}", "formed")
    store.wait([f"formed/{other}" for other in range(world_size)])


def _run(rank, names, timeout_s=30.0):
    """Make the call of this rank; return what it returned, or its error and after how long."""
    brain_dist.set_control_timeout(timeout_s)
    _wait_until_formed(rank, len(names))
    started = time.monotonic()
    try:
        return globals()[names[rank]]()
    except (OutOfStepError, RanksLostError) as error:
        return type(error).__name__, str(error), time.monotonic() - started


@pytest.mark.parametrize("names", [["_evaluate"] * 3, ["_save_in_fit"] * 2, ["_evaluate_in_fit"]])
def test_ranks_that_make_the_same_call_enter_it(ranks, names):
    """Nested calls too; one rank makes a group, too."""
    result = {"_evaluate": "evaluated", "_save_in_fit": "saved", "_evaluate_in_fit": "evaluated"}
    assert ranks(_run, len(names), names) == [result[name] for name in names]


def test_in_one_process_a_call_checks_nothing():
    """Without a group, and inside a function that only rank 0 runs."""
    assert _save_in_fit() == "saved"


def _on_main(rank):
    return brain_dist.run_on_main(_save_in_fit)


def test_inside_a_function_of_the_main_process_a_call_checks_nothing(ranks):
    """The other ranks wait for its result."""
    assert ranks(_on_main, 2) == ["saved"] * 2


@pytest.mark.parametrize(
    ("other", "call"),
    [
        ("_fit", r"fit\(\)"),
        ("_barrier", r"ddp_barrier\(\)"),
        ("_gather", r"gather_objects\(\)"),
        ("_broadcast", r"ddp_broadcast\(\)"),
        ("_raise", r"raise_on_all_ranks\(\)"),
        ("_vote", r"StepVote\.vote\(\)"),
    ],
)
def test_two_ranks_that_make_different_calls_both_name_them(ranks, other, call):
    """With the places in the user's code, at once."""
    results = ranks(_run, 2, ["_evaluate", other])
    text = (
        rf"the ranks are out of step: rank 0 is in evaluate\(\) at {PLACE}, "
        rf"rank 1 in {call} at {PLACE}: call it on every rank"
    )
    for kind, message, took_s in results:
        assert kind == "OutOfStepError"
        assert re.fullmatch(text, message), message
        assert took_s < 15


def test_nested_calls_are_named_from_the_inside(ranks):
    """As in a traceback."""
    results = ranks(_run, 2, ["_save_in_fit", "_evaluate_in_fit"])
    for _, message, _ in results:
        assert re.search(
            rf"rank 0 is in save_checkpoint\(\) in fit\(\) at {PLACE}, rank 1 in "
            rf"evaluate\(\) in fit\(\) at {PLACE}:",
            message,
        ), message


def test_ranks_with_the_same_call_are_named_together(ranks):
    """One against two."""
    for _, message, _ in ranks(_run, 3, ["_evaluate", "_fit", "_fit"]):
        assert re.search(r"rank 0 is in evaluate\(\) at \S+, ranks 1, 2 in fit\(\) at", message)


def test_two_ranks_that_differ_do_not_wait_for_a_third(ranks):
    """The third may wait for them elsewhere."""
    outcomes = ranks.outcomes(_run, 3, ["_evaluate", "_fit", "_stay_away"])
    for kind, (error, message, took_s) in outcomes[:2]:
        assert (kind, error) == ("returned", "OutOfStepError")
        assert re.search(r"rank 0 is in evaluate\(\) at \S+, rank 1 in fit\(\) at", message)
        assert took_s < 15
    assert outcomes[2] == ("returned", None)


def test_a_rank_that_is_late_is_waited_for(ranks):
    """Longer than ranks wait before they look for different calls."""
    assert ranks(_run, 3, ["_evaluate", "_be_late", "_evaluate"]) == ["evaluated"] * 3


@pytest.mark.parametrize("other", ["_end", "_be_killed"])
def test_a_rank_whose_process_has_ended_is_named(ranks, other):
    """At once, not after the timeout."""
    kind, (error, message, took_s) = ranks.outcomes(_run, 2, ["_evaluate", other])[0]
    assert (kind, error) == ("returned", "RanksLostError")
    assert "has to reach evaluate within 30 s, got on rank 0: rank(s) 1 did not" in message
    assert re.search(rf"this rank waited in evaluate\(\) at {PLACE}\.", message)
    assert took_s < 15


def test_a_rank_in_a_collective_of_torch_is_lost_at_the_timeout(ranks):
    """It waits in another group, and cannot be asked."""
    outcomes = ranks.outcomes(_run, 2, ["_evaluate", "_all_reduce"], 3.0)
    kind, (error, message, took_s) = outcomes[0]
    assert (kind, error) == ("returned", "RanksLostError")
    assert "has to reach evaluate within 3 s, got on rank 0: rank(s) 1 did not" in message
    assert 2.5 < took_s < 15


def _enter_with_error(rank, failing):
    error = ValueError("not a name") if rank in failing else None
    try:
        with collective_call("save_checkpoint", error):
            return "entered"
    except ValueError as caught:
        return str(caught)


@pytest.mark.parametrize("failing", [(1,), (0, 1)])
def test_an_error_of_a_rank_that_enters_is_raised_on_all(ranks, failing):
    """With the numbers of the ranks that failed."""
    first, second = ranks(_enter_with_error, 2, failing)
    assert first == second
    assert re.fullmatch(rf"not a name \(on rank.* {failing[-1]} of 2\)", first), first


def test_in_one_process_an_error_is_raised_at_the_entrance():
    """As it is."""
    error = ValueError("not a name")
    with pytest.raises(ValueError, match="not a name") as raised, collective_call("fit", error):
        pass
    assert raised.value is error


def _fail_to_enter(rank):
    error = ValueError("not a name") if rank else None
    with contextlib.suppress(OutOfStepError), collective_call("fit" if rank else "save", error):
        return "entered"
    return _evaluate()


def test_ranks_in_different_calls_are_out_of_step_also_if_one_has_failed(ranks):
    """They can continue after that."""
    assert ranks(_fail_to_enter, 2) == ["evaluated"] * 2


def _continue(rank):
    with contextlib.suppress(OutOfStepError):
        _evaluate() if rank else _fit()
    return _evaluate(), brain_dist.gather_objects(rank)


def test_ranks_that_were_out_of_step_can_continue(ranks):
    """All of them took part in the collective that showed it."""
    assert ranks(_continue, 2) == [("evaluated", [0, 1])] * 2


def _late_keys(rank):
    time.sleep(1.5 * rank)
    brain_dist.ddp_barrier()
    brain_dist.ddp_barrier()
    store = distributed.distributed_c10d._get_default_store()
    prefix = brain_dist.control_group.control_group()._prefix
    return [store.check([f"{prefix}/1/{key}"]) for key in (rank, "first")]


def test_a_late_rank_leaves_nothing_in_the_store(ranks):
    """A long run has many."""
    assert ranks(_late_keys, 2) == [[False, False]] * 2
