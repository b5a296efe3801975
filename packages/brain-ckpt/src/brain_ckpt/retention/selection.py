"""The retention and search arguments of SpeechBrain's checkpointer, as policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from brain_ckpt.retention.checkpoint import Checkpoint, Key, ckpt_recency, metrics
from brain_ckpt.retention.policies import (
    KeepBest,
    KeepMostImportant,
    Policy,
    any_of,
    metric_key,
    newest_first,
    ranked,
)

Predicate = Callable[[Checkpoint], bool]


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Which checkpoints `delete_checkpoints` keeps; the fields are its arguments."""

    num_to_keep: int = 1
    min_keys: Sequence[str] = ()
    max_keys: Sequence[str] = ()
    importance_keys: Sequence[Key] = (ckpt_recency,)
    ckpt_predicate: Predicate | None = None

    def __post_init__(self) -> None:
        """Check the arguments before the save that they belong to."""
        for key in (*self.min_keys, *self.max_keys):
            if not isinstance(key, str):
                raise TypeError(
                    f"min_keys and max_keys must be lists of names in meta, got {key!r}; pass a "
                    f"function in importance_keys"
                )
        for name in ("min_keys", "max_keys"):
            if isinstance(getattr(self, name), str):
                raise TypeError(
                    f"{name} must be a list of names, got {getattr(self, name)!r}; "
                    f"write [{getattr(self, name)!r}]"
                )
        self.policy()

    def policy(self) -> Policy:
        """Return the arguments as one policy."""
        return any_of(
            *(KeepBest(key, "min", self.num_to_keep) for key in self.min_keys),
            *(KeepBest(key, "max", self.num_to_keep) for key in self.max_keys),
            *(KeepMostImportant(key, self.num_to_keep) for key in self.importance_keys),
        )

    def most_kept(self) -> int:
        """Return how many checkpoints are kept at most, of those that it applies to."""
        keys = (*self.min_keys, *self.max_keys, *self.importance_keys)
        return self.num_to_keep * len(keys)

    def applies_to(self, checkpoint: Checkpoint) -> bool:
        """Return whether a checkpoint may be deleted; one without any of the keys may not."""
        if self.ckpt_predicate is not None and not self.ckpt_predicate(checkpoint):
            return False
        keys = (*self.min_keys, *self.max_keys)
        return bool(self.importance_keys) or any(key in checkpoint.meta for key in keys)


def choose_deletions(
    checkpoints: Sequence[Checkpoint], retention: Retention, also_keep: Policy | None = None
) -> list[Checkpoint]:
    """Return the checkpoints to delete.

    Parameters
    ----------
    checkpoints : sequence of Checkpoint
        All checkpoints of the directory.
    retention : Retention
        What to keep of the checkpoints that it applies to.
    also_keep : Policy, optional
        What to keep of all checkpoints.
    """
    candidates = [one for one in checkpoints if retention.applies_to(one)]
    kept = {
        one.path
        for one, keep in zip(candidates, retention.policy()(candidates), strict=True)
        if keep
    }
    if also_keep is not None:
        flags = also_keep(checkpoints)
        kept |= {one.path for one, keep in zip(checkpoints, flags, strict=True) if keep}
    return [one for one in candidates if one.path not in kept]


class CheckpointQuery(NamedTuple):
    """A search for checkpoints; the fields are arguments of `find_checkpoints`."""

    importance_key: Key | None = None
    max_key: str | None = None
    min_key: str | None = None
    ckpt_predicate: Predicate | None = None

    @property
    def is_by_time(self) -> bool:
        """Whether the newest is the best, so that an older one can replace a damaged one."""
        return not (self.importance_key or self.max_key or self.min_key)

    def best_first(self, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
        """Return the matching checkpoints, the best first.

        Raises
        ------
        ValueError
            If more than one of the keys is given, or none of the checkpoints has the metric.
        """
        keys = [key for key in (self.importance_key, self.max_key, self.min_key) if key]
        if len(keys) > 1:
            raise ValueError(
                f"at most one of importance_key, max_key and min_key may be given, got {keys!r}; "
                f"drop the others"
            )
        for name in ("max_key", "min_key"):
            _check_metric(name, getattr(self, name), checkpoints)
        predicate = self.ckpt_predicate
        matching = [one for one in checkpoints if predicate is None or predicate(one)]
        if self.max_key:
            return _ranked_by_metric(matching, self.max_key, "max")
        if self.min_key:
            return _ranked_by_metric(matching, self.min_key, "min")
        if self.importance_key:
            return ranked(matching, self.importance_key)
        return newest_first(matching)


def _check_metric(name: str, key: str | None, checkpoints: Sequence[Checkpoint]) -> None:
    if not key or not checkpoints or any(key in one.meta for one in checkpoints):
        return
    known = sorted({metric for one in checkpoints for metric in metrics(one)})
    raise ValueError(
        f"{name} must be a metric that a checkpoint has, got {key!r}; the checkpoints in "
        f"{checkpoints[0].path.parent} have {', '.join(known) or 'none'}: name one of them, or "
        f"pass it in meta to save_checkpoint"
    )


def _ranked_by_metric(
    checkpoints: Sequence[Checkpoint], key: str, mode: Literal["max", "min"]
) -> list[Checkpoint]:
    return ranked([one for one in checkpoints if key in one.meta], metric_key(key, mode))
