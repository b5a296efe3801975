"""What to keep, and which is best: pure functions of a list of checkpoints.

A policy takes checkpoints and says for each whether it stays.  A value that is not a number is
never best and never pushes another one out.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

HOUR_S = 3600.0
DAY_S = 86400.0

Key = Callable[["Checkpoint"], Any]


class Checkpoint(NamedTuple):
    """One saved checkpoint.

    Parameters
    ----------
    path : Path
        Its directory.
    meta : dict
        What CKPT.yaml holds: "unixtime", "end-of-epoch" and what was given to the save.
    paramfiles : dict of str to Path
        The file of each recoverable, by its name.
    """

    path: Path
    meta: dict[str, Any]
    paramfiles: dict[str, Path]

    def __hash__(self) -> int:
        """Tell checkpoints apart by their directories."""
        return hash(self.path)


class Policy(Protocol):
    """Says of each checkpoint whether it is to stay."""

    def __call__(self, checkpoints: Sequence[Checkpoint], /) -> list[bool]:
        """Return True for each one to keep, in the order given."""
        ...


def ckpt_recency(ckpt: Checkpoint) -> float:
    """Return the time of a checkpoint, in seconds since 1970; a key of importance."""
    return float(ckpt.meta["unixtime"])


@dataclass(frozen=True)
class KeepLast:
    """Keep the newest.

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
        """Return True for each one to keep."""
        return _marks(checkpoints, newest_first(checkpoints)[: self.count])


@dataclass(frozen=True)
class KeepBest:
    """Keep the best by a value in meta; one without the value is none of its business.

    Parameters
    ----------
    key : str
        The name of the value.
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
            raise ValueError(f'mode is "max" or "min", got {self.mode!r}')

    def __call__(self, checkpoints: Sequence[Checkpoint], /) -> list[bool]:
        """Return True for each one to keep."""
        having = [one for one in checkpoints if self.key in one.meta]
        return _marks(checkpoints, ranked(having, metric(self.key, self.mode))[: self.count])


@dataclass(frozen=True)
class KeepMostImportant:
    """Keep those with the highest keys.

    Parameters
    ----------
    key : callable
        Takes a checkpoint and returns something that sorts.
    count : int
        How many.
    """

    key: Key
    count: int = 1

    def __post_init__(self) -> None:
        """Check the count."""
        _check_count(self.count)

    def __call__(self, checkpoints: Sequence[Checkpoint], /) -> list[bool]:
        """Return True for each one to keep."""
        return _marks(checkpoints, ranked(checkpoints, self.key)[: self.count])


@dataclass(frozen=True)
class KeepEvery:
    """Keep the first checkpoint of each stretch of time, such as one an hour or a day.

    Parameters
    ----------
    seconds : float
        How long a stretch is; stretches are counted from 1970, so that restarts do not shift them.
    """

    seconds: float

    def __post_init__(self) -> None:
        """Check the length."""
        if not self.seconds > 0:
            raise ValueError(f"a stretch of time is above zero seconds, got {self.seconds!r}")

    def __call__(self, checkpoints: Sequence[Checkpoint], /) -> list[bool]:
        """Return True for each one to keep."""
        first: dict[int, Checkpoint] = {}
        for one in reversed(newest_first(checkpoints)):
            first.setdefault(math.floor(ckpt_recency(one) / self.seconds), one)
        return _marks(checkpoints, list(first.values()))


@dataclass(frozen=True)
class KeepPinned:
    """Keep checkpoints by name.

    Parameters
    ----------
    names : collection of str
        Names as given to the save, without "CKPT+".
    """

    names: Collection[str]

    def __call__(self, checkpoints: Sequence[Checkpoint], /) -> list[bool]:
        """Return True for each one to keep."""
        return [one.path.name.removeprefix("CKPT+") in self.names for one in checkpoints]


def directory_bytes(checkpoint: Checkpoint) -> int:
    """Return how many bytes the files of a checkpoint have."""
    return sum(file.stat().st_size for file in checkpoint.path.rglob("*") if file.is_file())


@dataclass(frozen=True)
class KeepWithinBytes:
    """Keep the newest that fit into a budget together; always the newest one.

    Parameters
    ----------
    budget_bytes : int
        The budget.
    size_of : callable
        Takes a checkpoint and returns its bytes.
    """

    budget_bytes: int
    size_of: Callable[[Checkpoint], int] = field(default=directory_bytes)

    def __call__(self, checkpoints: Sequence[Checkpoint], /) -> list[bool]:
        """Return True for each one to keep."""
        kept: list[Checkpoint] = []
        used_bytes = 0
        for one in newest_first(checkpoints):
            used_bytes += self.size_of(one)
            if kept and used_bytes > self.budget_bytes:
                break
            kept.append(one)
        return _marks(checkpoints, kept)


def any_of(*policies: Policy) -> Policy:
    """Join policies: what any of them keeps stays."""

    def joined(checkpoints: Sequence[Checkpoint], /) -> list[bool]:
        votes = [policy(checkpoints) for policy in policies]
        return [any(column) for column in zip(*votes, strict=True)] or [False] * len(checkpoints)

    return joined


def newest_first(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Sort by time, the newest first; of equal times the one listed later is newer."""
    return sorted(checkpoints, key=ckpt_recency)[::-1]


def ranked(checkpoints: Sequence[Checkpoint], key: Key) -> list[Checkpoint]:
    """Sort by importance, the highest first; of equals the newer first, what is NaN last."""
    keyed = [(key(one), one) for one in newest_first(checkpoints)]
    numbers = [(value, one) for value, one in keyed if not _is_nan(value)]
    rest = [one for value, one in keyed if _is_nan(value)]
    numbers.sort(key=lambda pair: pair[0], reverse=True)
    return [one for _, one in numbers] + rest


def metric(key: str, mode: Literal["max", "min"]) -> Key:
    """Return the importance by a value in meta, the best highest; NaN for what is no number."""
    sign = 1 if mode == "max" else -1

    def importance(ckpt: Checkpoint) -> float:
        value = ckpt.meta[key]
        if not isinstance(value, (int, float)):
            logger.warning("%s: %r is not a number: %r; never best", ckpt.path, key, value)
            return math.nan
        return sign * value

    return importance


def age_s(checkpoint: Checkpoint) -> float:
    """Return how long ago a checkpoint was saved, in seconds."""
    return time.time() - ckpt_recency(checkpoint)


def _is_nan(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(_is_nan(part) for part in value)
    return bool(value != value)  # noqa: PLR0124 - true of NaN alone, of any type


def _marks(checkpoints: Sequence[Checkpoint], kept: Sequence[Checkpoint]) -> list[bool]:
    paths = {one.path for one in kept}
    return [one.path in paths for one in checkpoints]


def _check_count(count: int) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ValueError(f"the number of checkpoints to keep is 0 or more, got {count!r}")
