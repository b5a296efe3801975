"""Ranks that lose another rank during training."""

import os
import signal
import time

import pytest
import torch
from torch import nn

import brain_dist

TIMEOUT_S = 1.5


@pytest.fixture
def launched(free_port):
    """Return the environment variables that torchrun sets for three ranks."""
    environ = {"RANK": "{rank}", "WORLD_SIZE": "3", "LOCAL_RANK": "{rank}"}
    return {**environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}


def _lose(what):
    if what == "raised":
        raise KeyError("a batch")
    os.kill(os.getpid(), signal.SIGKILL if what == "killed" else signal.SIGSTOP)


def _train(rank, what):
    """Train; rank 1 is lost before its fourth step. Return the error and the seconds to it."""
    brain_dist.ddp_init_group({"distributed_backend": "gloo"}, timeout_s=TIMEOUT_S)
    modules = {"m": nn.Linear(4, 4)}
    brain_dist.wrap_modules(modules, device="cpu")
    vote = brain_dist.StepVote(every=1)
    try:
        for step in range(8):
            if (rank, step) == (1, 3):
                _lose(what)
            lost_at = time.monotonic()
            modules["m"](torch.rand(2, 4)).sum().backward()
            vote.vote(0)
    except (RuntimeError, KeyError) as error:
        vote.close()
        if what == "raised" and rank == 1:
            os._exit(1)
        return type(error).__name__, time.monotonic() - lost_at
    return "trained", 0.0


@pytest.mark.parametrize(
    ("what", "within_s"), [("raised", 2.0), ("killed", 2.0), ("stopped", TIMEOUT_S + 2.0)]
)
def test_no_rank_waits_longer_than_the_timeout_for_a_lost_rank(ranks, launched, what, within_s):
    """The error comes at once if its process ended, at the timeout if it hangs; all ranks stop."""
    outcomes = ranks.outcomes(_train, 3, what, group=False, environ=launched, timeout_s=10)
    for rank in (0, 2):
        kind, (name, took_s) = outcomes[rank]
        assert (kind, name) in {("returned", "RuntimeError"), ("returned", "RanksLostError")}
        # A busy machine and the search for the missing rank take some seconds more.
        assert took_s < within_s + 5
