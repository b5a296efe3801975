"""Which checkpoints a call of the checkpointer means: the reference's arguments, as policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from brain_ckpt.retention.policies import (
    Checkpoint,
    KeepBest,
    KeepMostImportant,
    Key,
    Policy,
    any_of,
    ckpt_recency,
    metric,
    ranked,
)

Predicate = Callable[[Checkpoint], bool]


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What `delete_checkpoints` is asked to keep; the fields are its arguments."""

    num_to_keep: int = 1
    min_keys: Sequence[str] = ()
    max_keys: Sequence[str] = ()
    importance_keys: Sequence[Key] = (ckpt_recency,)
    ckpt_predicate: Predicate | None = None

    def __post_init__(self) -> None:
        """Check the arguments, before a save of which they are a part."""
        for key in (*self.min_keys, *self.max_keys):
            if not isinstance(key, str):
                raise TypeError(
                    f"min_keys and max_keys are lists of names in meta, got {key!r}; pass a "
                    f"function in importance_keys"
                )
        for name in ("min_keys", "max_keys"):
            if isinstance(getattr(self, name), str):
                raise TypeError(
                    f"{name} is a list of names, got {getattr(self, name)!r}; "
                    f"write [{getattr(self, name)!r}]"
                )
        self.policy()

    def policy(self) -> Policy:
        """Return what is protected, as one policy."""
        return any_of(
            *(KeepBest(key, "min", self.num_to_keep) for key in self.min_keys),
            *(KeepBest(key, "max", self.num_to_keep) for key in self.max_keys),
            *(KeepMostImportant(key, self.num_to_keep) for key in self.importance_keys),
        )

    def concerns(self, checkpoint: Checkpoint) -> bool:
        """Say whether a checkpoint may be deleted at all; one without a key is left alone."""
        if self.ckpt_predicate is not None and not self.ckpt_predicate(checkpoint):
            return False
        keys = (*self.min_keys, *self.max_keys)
        return bool(self.importance_keys) or any(key in checkpoint.meta for key in keys)


def choose_doomed(
    checkpoints: Sequence[Checkpoint], retention: Retention, also_keep: Policy | None = None
) -> list[Checkpoint]:
    """Return the checkpoints that are to go.

    Parameters
    ----------
    checkpoints : sequence of Checkpoint
        All there are.
    retention : Retention
        What to keep of those that it concerns.
    also_keep : Policy, optional
        What to keep of all.
    """
    concerned = [one for one in checkpoints if retention.concerns(one)]
    kept = {
        one.path
        for one, stays in zip(concerned, retention.policy()(concerned), strict=True)
        if stays
    }
    if also_keep is not None:
        votes = also_keep(checkpoints)
        kept |= {one.path for one, stays in zip(checkpoints, votes, strict=True) if stays}
    return [one for one in concerned if one.path not in kept]


def choose(
    checkpoints: Sequence[Checkpoint],
    importance_key: Key | None = None,
    max_key: str | None = None,
    min_key: str | None = None,
    ckpt_predicate: Predicate | None = None,
) -> list[Checkpoint]:
    """Return the checkpoints that a search means, the best first.

    Raises
    ------
    ValueError
        If more than one of the keys is given.
    """
    given = [key for key in (importance_key, max_key, min_key) if key]
    if len(given) > 1:
        raise ValueError(
            f"at most one of importance_key, max_key and min_key may be given, got {given!r}; "
            f"drop the others"
        )
    found = [one for one in checkpoints if ckpt_predicate is None or ckpt_predicate(one)]
    if max_key:
        return ranked([one for one in found if max_key in one.meta], metric(max_key, "max"))
    if min_key:
        return ranked([one for one in found if min_key in one.meta], metric(min_key, "min"))
    return ranked(found, importance_key or ckpt_recency)
