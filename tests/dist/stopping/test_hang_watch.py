"""Logs of who waits where when no step ends."""

import logging
import re
import time

import pytest
from torch import distributed

import brain_dist
from brain_dist import HangWatch
from brain_dist.stopping import hang_watch


def _wait_until(condition):
    while not condition():
        time.sleep(0.01)


def _waiting(caplog):
    return [r.getMessage() for r in caplog.records if "No step has ended" in r.getMessage()]


def test_a_step_that_does_not_end_is_logged_with_its_stack(caplog):
    """Again after twice as long; a step that ends starts anew."""
    with HangWatch(0.05) as watch:
        watch.step()
        _wait_until(lambda: len(_waiting(caplog)) == 2)
        watch.step()
        _wait_until(lambda: len(_waiting(caplog)) == 3)
    first, second, third = _waiting(caplog)
    place = r"_wait_until\(\) at \S*test_hang_watch\.py:\d+|<lambda>\(\) at \S*test_hang_watch"
    for message, steps in ((first, 1), (second, 1), (third, 2)):
        assert re.search(place, message)
        assert "on rank 0, which waits in" in message
        assert f"after {steps} step(s):" in message
        assert "in test_a_step_that_does_not_end_is_logged_with_its_stack" in message


def test_steps_that_end_log_nothing(caplog):
    """However many there are."""
    with HangWatch(30.0) as watch:
        for _ in range(1000):
            watch.step()
    assert not caplog.records


def test_a_watch_without_seconds_starts_no_thread():
    """So that an option can be passed as it is."""
    with HangWatch(None) as watch:
        watch.step()
        assert watch._watch is None


def test_a_watch_waits_above_zero_seconds():
    """With zero every step would hang."""
    with pytest.raises(ValueError, match="above zero seconds, got 0; use None"):
        HangWatch(0)


def _hang(rank):
    messages = []
    logger = logging.getLogger("brain_dist.stopping.hang_watch")
    logger.addFilter(lambda record: messages.append(record.getMessage()) or False)
    hang_watch._REPORT_S = 3.0
    with HangWatch(0.3) as watch:
        watch.step()
        if rank == 0:
            brain_dist.ddp_barrier()
        elif rank == 1:
            store = distributed.distributed_c10d._get_default_store()
            _wait_until(lambda: store.check(["brain_dist/hangs/1/0", "brain_dist/hangs/1/1"]))
    if rank != 0:
        brain_dist.ddp_barrier()
    return messages


def test_rank_0_names_the_place_of_every_rank(ranks):
    """A rank that has left the block has not reported."""
    first, second, _ = ranks(_hang, 3)
    line = next(message for message in first if message.startswith("No step ends:"))
    assert re.search(r"rank 0 waits in \w+\(\) at \S*test_hang_watch\.py:\d+ after 1 step", line)
    assert re.search(r"rank 1 waits in \S+\(\) at \S*test_hang_watch\.py:\d+ after 1 step", line)
    assert "rank 2 has not reported: it has left, or its process has ended" in line
    assert "on rank 1, which waits in" in second[0]
