"""What is uploaded next, and what is left out."""

from pathlib import Path

import pytest

from brain_ckpt import Checkpoint, KeepBest, KeepLast, KeepPinned, any_of
from brain_ckpt.mirror.priority import MAX_IMPORTANT, MAX_RECENT, choose_left_out, upload_order


def made(number, **meta):
    return Checkpoint(
        Path(f"CKPT+{number}"), {"unixtime": float(number), **meta}, {}, commit_id=str(number)
    )


def numbers(checkpoints):
    return [int(one.commit_id) for one in checkpoints]


@pytest.mark.parametrize(
    ("waiting", "mirrored", "policies", "expected"),
    [
        ([1, 2, 3], [], [], [3, 2, 1]),
        ([1, 2, 3], [], [KeepLast(3)], [3, 2, 1]),
        ([1, 2, 3], [], [KeepPinned(["1"])], [3, 1, 2]),
        ([1, 2, 3], [4], [any_of(KeepLast(9), KeepPinned(["1"]))], [1, 3, 2]),
        ([], [1], [KeepLast(1)], []),
    ],
)
def test_the_newest_is_first_then_what_a_policy_names(waiting, mirrored, policies, expected):
    """Once the mirror has a newer one, the named one is first."""
    order = upload_order(list(map(made, waiting)), list(map(made, mirrored)), policies)
    assert numbers(order) == expected


def test_the_best_is_compared_with_the_mirror():
    """One that is worse than a mirrored one is not important."""
    policy = KeepBest("loss", "min")
    waiting = [made(1, loss=0.5), made(2, loss=0.9), made(3, loss=0.8)]
    assert numbers(upload_order(waiting, [], [policy])) == [3, 1, 2]
    assert numbers(upload_order(waiting, [made(0, loss=0.1)], [policy])) == [3, 2, 1]


def test_a_bounded_number_waits():
    """The newest, and of those that a policy names the newest."""
    waiting = list(map(made, range(40)))
    assert numbers(choose_left_out(waiting, [], [])) == list(range(40 - MAX_RECENT))[::-1]
    pinned = KeepPinned([str(number) for number in range(20)])
    left = numbers(choose_left_out(waiting, [], [pinned]))
    assert left[: 20 - MAX_IMPORTANT] == list(range(20 - MAX_IMPORTANT))[::-1]
    assert len(left) == 40 - MAX_IMPORTANT - MAX_RECENT
    assert 39 not in left
