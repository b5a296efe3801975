"""Which checkpoint to upload next, and which to leave out: pure functions of lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain_ckpt.retention.checkpoint import ckpt_recency
from brain_ckpt.retention.policies import (
    AnyOf,
    KeepLast,
    KeepMostImportant,
    KeepWithinBytes,
    newest_first,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from brain_ckpt.retention.checkpoint import Checkpoint
    from brain_ckpt.retention.policies import Policy

# How many checkpoints wait: the newest ones, and those that a policy keeps for another reason.
MAX_RECENT = 4
MAX_IMPORTANT = 16


def upload_order(
    waiting: Sequence[Checkpoint], mirrored: Sequence[Checkpoint], policies: Iterable[Policy]
) -> list[Checkpoint]:
    """Return the checkpoints that wait, the most urgent first.

    One that is newer than everything in the mirror comes first, because a run resumes from the
    newest; then those that a policy keeps for another reason than their age, such as a name or a
    metric; then the others.  Of each kind the newer is first.

    Parameters
    ----------
    waiting : sequence of Checkpoint
        Those to upload.
    mirrored : sequence of Checkpoint
        Those that are in the mirror, which can be better.
    policies : iterable of Policy
        What is kept there.
    """
    important = _important(waiting, mirrored, policies)
    mirrored_s = max(map(ckpt_recency, mirrored), default=float("-inf"))
    newest = [one for one in newest_first(waiting)[:1] if ckpt_recency(one) > mirrored_s]
    others = [one for one in newest_first(waiting) if one not in newest]
    return [
        *newest,
        *(one for one in others if one.commit_id in important),
        *(one for one in others if one.commit_id not in important),
    ]


def choose_left_out(
    waiting: Sequence[Checkpoint], mirrored: Sequence[Checkpoint], policies: Iterable[Policy]
) -> list[Checkpoint]:
    """Return the checkpoints that wait in vain, because too many wait; arguments as above."""
    important = _important(waiting, mirrored, policies)
    others = newest_first(waiting)[1:]  # the newest always waits
    kept = [one for one in others if one.commit_id in important]
    recent = [one for one in others if one.commit_id not in important]
    return kept[MAX_IMPORTANT:] + recent[MAX_RECENT - 1 :]


def _important(
    waiting: Sequence[Checkpoint], mirrored: Sequence[Checkpoint], policies: Iterable[Policy]
) -> set[str | None]:
    """Return the commit ids of those that a policy keeps for another reason than their age."""
    commits = {one.commit_id for one in waiting}
    everything = [*(one for one in mirrored if one.commit_id not in commits), *waiting]
    found: set[str | None] = set()
    for policy in _parts(policies):
        flags = policy(everything)
        found |= {one.commit_id for one, keep in zip(everything, flags, strict=True) if keep}
    return found & commits


def _parts(policies: Iterable[Policy]) -> Iterator[Policy]:
    for policy in policies:
        if isinstance(policy, AnyOf):
            yield from _parts(policy.policies)
        elif not _is_by_age(policy):
            yield policy


def _is_by_age(policy: Policy) -> bool:
    if isinstance(policy, KeepMostImportant):
        return policy.key is ckpt_recency
    return isinstance(policy, (KeepLast, KeepWithinBytes))
