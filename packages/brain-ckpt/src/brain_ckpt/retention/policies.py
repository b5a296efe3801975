"""Retention policies: pure functions of a list of checkpoints.

A policy takes a list of checkpoints and returns, for each, whether to keep it.  NaN is never the
best value and never displaces another checkpoint.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from brain_ckpt.retention.checkpoint import Checkpoint, Key, ckpt_recency

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

logger = logging.getLogger(__name__)

HOUR_S = 3600.0
DAY_S = 86400.0


class Policy(Protocol):
    """Decides for each checkpoint whether to keep it."""

    def __call__(self, checkpoints: Sequence[Checkpoint], /) -> list[bool]:
        """Return True for each checkpoint to keep, in the order given."""
        ...


@dataclass(frozen=True)
class KeepLast:
    """Keep the newest checkpoints.

    Parameters
    ----------
    count : int
        How many.
    """

    count: int = 1

    def __post_init__(self) -> None:
        """Check the count."""
        _check_count(self.count)

    def __call__(self, checkpoints: Sequence[Checkpoint], /) -> list[bool]:
        """Return True for each checkpoint to keep."""
        return _keep_flags(checkpoints, newest_first(checkpoints)[: self.count])


@dataclass(frozen=True)
class KeepBest:
    """Keep the checkpoints with the best values of a metric.

    A checkpoint whose meta lacks the metric is not kept by this policy.

    Parameters
    ----------
    key : str
        The name of the metric in meta.
    mode : str
        "max" or "min".
    count : int
        How many.
    """

    key: str
    mode: Literal["max", "min"]
    count: int = 1

    def __post_init__(self) -> None:
        """Check the options."""
        _check_count(self.count)
        if self.mode not in ("max", "min"):
            raise ValueError(
                f'mode must be "max" or "min", got {self.mode!r}; use "min" for a loss'
            )

    def __call__(self, checkpoints: Sequence[Checkpoint], /) -> list[bool]:
        """Return True for each checkpoint to keep."""
        candidates = [one for one in checkpoints if self.key in one.meta]
        return _keep_flags(
            checkpoints, ranked(candidates, metric_key(self.key, self.mode))[: self.count]
        )


@dataclass(frozen=True)
class KeepMostImportant:
    """Keep the checkpoints with the highest keys.

    Parameters
    ----------
    key : callable
        Takes a checkpoint and returns a value that can be compared.
    count : int
        How many.
    """

    key: Key
    count: int = 1

    def __post_init__(self) -> None:
        """Check the count."""
        _check_count(self.count)

    def __call__(self, checkpoints: Sequence[Checkpoint], /) -> list[bool]:
        """Return True for each checkpoint to keep."""
        return _keep_flags(checkpoints, ranked(checkpoints, self.key)[: self.count])


@dataclass(frozen=True)
class KeepEvery:
    """Keep the first checkpoint of each period, such as one an hour or one a day.

    Parameters
    ----------
    seconds : float
        The length of a period.  Periods are counted from 1970, so restarts do not shift them.
    """

    seconds: float

    def __post_init__(self) -> None:
        """Check the period."""
        if not self.seconds > 0:
            raise ValueError(f"seconds must be above 0, got {self.seconds!r}; use HOUR_S or DAY_S")

    def __call__(self, checkpoints: Sequence[Checkpoint], /) -> list[bool]:
        """Return True for each checkpoint to keep."""
        first: dict[int, Checkpoint] = {}
        for one in reversed(newest_first(checkpoints)):
            first.setdefault(math.floor(ckpt_recency(one) / self.seconds), one)
        return _keep_flags(checkpoints, list(first.values()))


@dataclass(frozen=True)
class KeepPinned:
    """Keep checkpoints by name.

    Parameters
    ----------
    names : collection of str
        Names as passed to the save, without "CKPT+".
    """

    names: Collection[str]

    def __call__(self, checkpoints: Sequence[Checkpoint], /) -> list[bool]:
        """Return True for each checkpoint to keep."""
        return [one.path.name.removeprefix("CKPT+") in self.names for one in checkpoints]


def directory_bytes(checkpoint: Checkpoint) -> int:
    """Return the total size of a checkpoint's files in bytes."""
    if checkpoint.size_bytes is not None:
        return checkpoint.size_bytes
    return sum(file.stat().st_size for file in checkpoint.path.rglob("*") if file.is_file())


@dataclass(frozen=True)
class KeepWithinBytes:
    """Keep the newest checkpoints whose total size is within a budget; always keep the newest.

    Parameters
    ----------
    budget_bytes : int
        The budget, in bytes.
    size_of : callable
        Takes a checkpoint and returns its size in bytes.
    """

    budget_bytes: int
    size_of: Callable[[Checkpoint], int] = field(default=directory_bytes)

    def __call__(self, checkpoints: Sequence[Checkpoint], /) -> list[bool]:
        """Return True for each checkpoint to keep."""
        kept: list[Checkpoint] = []
        used_bytes = 0
        for one in newest_first(checkpoints):
            used_bytes += self.size_of(one)
            if kept and used_bytes > self.budget_bytes:
                break
            kept.append(one)
        return _keep_flags(checkpoints, kept)


@dataclass(frozen=True)
class AnyOf:
    """Keep each checkpoint that any of several policies keeps.

    Parameters
    ----------
    policies : tuple of Policy
        The policies.
    """

    policies: tuple[Policy, ...]

    def __call__(self, checkpoints: Sequence[Checkpoint], /) -> list[bool]:
        """Return True for each checkpoint to keep."""
        votes = [policy(checkpoints) for policy in self.policies]
        return [any(column) for column in zip(*votes, strict=True)] or [False] * len(checkpoints)


def any_of(*policies: Policy) -> Policy:
    """Combine policies: keep each checkpoint that any of them keeps."""
    return AnyOf(policies)


def newest_first(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Sort by time, newest first; of equal times the one listed later counts as newer."""
    return sorted(checkpoints, key=ckpt_recency)[::-1]


def ranked(checkpoints: Sequence[Checkpoint], key: Key) -> list[Checkpoint]:
    """Sort by a key, highest first; ties go to the newer checkpoint and NaN comes last."""
    keyed = [(key(one), one) for one in newest_first(checkpoints)]
    numbers = [(value, one) for value, one in keyed if not _is_nan(value)]
    rest = [one for value, one in keyed if _is_nan(value)]
    numbers.sort(key=lambda pair: pair[0], reverse=True)
    return [one for _, one in numbers] + rest


def metric_key(key: str, mode: Literal["max", "min"]) -> Key:
    """Return a key that is highest for the best metric value, and NaN for a non-number."""
    sign = 1 if mode == "max" else -1

    def importance(ckpt: Checkpoint) -> float:
        value = ckpt.meta[key]
        if not isinstance(value, (int, float)):
            logger.warning(
                "The metric %r of %s must be a number to rank by it, got %r; it ranks last",
                key,
                ckpt.path,
                value,
            )
            return math.nan
        return sign * value

    return importance


def _is_nan(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(_is_nan(part) for part in value)
    return bool(value != value)  # noqa: PLR0124 - only NaN differs from itself


def _keep_flags(checkpoints: Sequence[Checkpoint], kept: Sequence[Checkpoint]) -> list[bool]:
    paths = {one.path for one in kept}
    return [one.path in paths for one in checkpoints]


def _check_count(count: int) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ValueError(
            f"count must be an int, 0 or more, got {count!r}; pass how many checkpoints to keep"
        )
