"""Votes of ranks on flags."""

import time

import pytest

from brain_dist import StepVote
from brain_dist.stopping import vote as vote_module


def test_in_one_process_a_vote_returns_its_flags():
    """At once; it needs no group."""
    vote = StepVote()
    assert [vote.vote(flags) for flags in (0, 5, 0)] == [0, 5, 0]
    assert vote.settle(2) == 2
    vote.close()


def _vote(rank, flags, every):
    vote = StepVote(every)
    answers = [vote.vote(flags[rank][i]) for i in range(len(flags[rank]))]
    answers.append(vote.settle(8 if rank == 1 else 0))
    vote.close()
    return answers


def test_every_rank_gets_every_flag_at_the_same_call(ranks):
    """One call after it was passed; settle() returns what is pending."""
    flags = [[0, 1, 0, 0, 0], [0, 2, 0, 4, 16]]
    assert ranks(_vote, 2, flags, 1) == [[0, 0, 3, 0, 4, 24]] * 2


def test_flags_between_two_reductions_are_kept(ranks):
    """With every=3 they are returned after the next reduction, once."""
    flags = [[0, 1, 0, 0, 2, 0, 0, 0], [0] * 8]
    answers = ranks(_vote, 2, flags, 3)
    assert answers[0] == answers[1]
    assert [a for a in answers[0] if a] == [1, 2, 8]


def _adapt(rank):
    vote = StepVote()
    answers = []
    for call in range(1500):
        if call == 200:
            time.sleep(0.02 * rank)
        answers.append(vote.vote(1 if (rank, call) == (1, 300) else 0))
    interval = vote._interval
    vote.close()
    return answers, interval


def test_fast_steps_vote_less_often_and_still_agree(ranks):
    """The ranks agree on one interval although their clocks differ."""
    (first, interval), (second, other) = ranks(_adapt, 2)
    assert first == second
    assert sum(first) == 1
    assert 300 < first.index(1) <= 300 + 2 * 512
    assert interval == other > 8


def _stop_voting(rank):
    vote_module._CLOSE_TIMEOUT_S = 0.5
    vote = StepVote(1)
    vote.vote(0)
    if rank == 0:
        vote.vote(0)
        started = time.monotonic()
        vote.close()
        return time.monotonic() - started
    time.sleep(2)
    return None


def test_close_does_not_wait_long_for_a_rank_that_does_not_vote(ranks):
    """An exception that passes does not wait for the timeout of a collective."""
    assert ranks.outcomes(_stop_voting, 2)[0] == ("returned", pytest.approx(0.5, abs=0.5))


def test_an_interval_is_a_whole_number_of_calls():
    """Zero calls would never vote."""
    with pytest.raises(ValueError, match="from 1 on, got 0"):
        StepVote(every=0)
