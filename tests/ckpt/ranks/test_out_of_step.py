"""Ranks that call different methods of a checkpointer, without brain-core."""

from __future__ import annotations

import re
import time
from collections import Counter

import pytest
import torch
from torch import distributed

from brain_ckpt import Checkpointer
from brain_dist import OutOfStepError, collective_call, ddp_barrier, set_control_timeout

PLACE = r"\S*test_out_of_step\.py:\d+"
METHODS = ("save_checkpoint", "save_and_keep_only", "recover_if_possible", "delete_checkpoints")


def _call(checkpointer, name):
    if name == "ddp_barrier":
        ddp_barrier()
    elif name == "fit":
        with collective_call("fit"):
            pass
    elif name == "load_checkpoint":
        checkpointer.load_checkpoint(checkpointer.find_checkpoint())
    else:
        getattr(checkpointer, name)()


def _make(folder, *, asynchronous=False):
    model = torch.nn.Linear(2, 1)
    return Checkpointer(folder, {"model": model}, asynchronous=asynchronous)


def _run(rank, folder, names, asynchronous):
    """Make the call of this rank; return the text of its error, and after how long."""
    set_control_timeout(30.0)
    checkpointer = _make(folder, asynchronous=asynchronous)
    checkpointer.save_checkpoint()  # pending, if it is asynchronous
    started = time.monotonic()
    try:
        _call(checkpointer, names[rank])
    except OutOfStepError as error:
        return str(error), time.monotonic() - started
    return "nothing", 0.0


@pytest.mark.parametrize(
    ("names", "asynchronous"),
    [
        (("save_checkpoint", "fit"), False),
        (("save_checkpoint", "save_and_keep_only"), True),
        (("recover_if_possible", "save_checkpoint"), True),
        (("recover_if_possible", "ddp_barrier"), False),
        (("load_checkpoint", "delete_checkpoints"), False),
    ],
)
def test_ranks_in_different_methods_are_told_at_once_where_each_one_is(
    ranks, tmp_path, names, asynchronous
):
    """With the lines of the user's script."""
    parts = [rf"{name}\(\) at {PLACE}" for name in names]
    expected = rf"rank 0 is in {parts[0]}, rank 1 in {parts[1]}: call it on every rank"
    for message, took_s in ranks(_run, 2, tmp_path / "save", names, asynchronous):
        assert re.search(expected, message), message
        assert took_s < 15


def _continue(rank, folder):
    checkpointer = _make(folder)
    with pytest.raises(OutOfStepError):
        _call(checkpointer, METHODS[rank])
    checkpointer.save_checkpoint()
    return checkpointer.recover_if_possible() is not None


def test_ranks_that_were_out_of_step_can_save(ranks, tmp_path):
    """The save that not all of them called has written nothing."""
    assert ranks(_continue, 2, tmp_path / "save") == [True] * 2


def _save_with_wrong_name(rank, folder):
    checkpointer = _make(folder)
    try:
        checkpointer.save_checkpoint(name="a/b" if rank else None)
    except ValueError as error:
        return str(error)
    return "saved"


def test_a_wrong_argument_of_one_rank_is_an_error_of_all(ranks, tmp_path):
    """Which names that rank."""
    first, second = ranks(_save_with_wrong_name, 2, tmp_path / "save")
    assert first == second
    assert first.endswith("(on rank 1 of 2)")


def _count(rank, folder):
    """Return the number of messages of each method."""
    checkpointer = _make(folder)
    checkpointer.save_checkpoint()
    counts = Counter()
    for kind in ("all_reduce", "all_gather", "broadcast", "gather"):
        _count_calls(kind, counts)
    messages = {}
    for name in METHODS:
        counts.clear()
        _call(checkpointer, name)
        messages[name] = counts.total()
    return messages


def _count_calls(kind, counts):
    function = getattr(distributed, kind)

    def counted(*args, **kwargs):
        counts[kind] += 1
        return function(*args, **kwargs)

    setattr(distributed, kind, counted)  # the process of a rank ends with the test


def test_the_check_takes_no_message_of_its_own_in_a_save(ranks, tmp_path):
    """In a save it shares the first one; a recovery and a deletion begin with one more."""
    expected = dict(zip(METHODS, (10, 11, 8, 2), strict=True))
    assert ranks(_count, 2, tmp_path / "save") == [expected] * 2
