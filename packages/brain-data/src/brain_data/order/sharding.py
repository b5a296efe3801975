"""Which micro-batches of an epoch each rank takes, as a pure function of integers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from brain_data.order.keyed import KeyedOrder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from brain_data.order.plan import EpochPlan, Ints

LastRound = Literal["split", "pad"]
"""How a last round with fewer micro-batches than ranks is completed, see `ShardedPlan`."""

_MAX_LISTED_WORLD_SIZE = 1024
_BLOCK_ROWS = 2048


class EvenParts(Sequence["Ints"]):
    """Places of the order split into parts whose sizes differ by one at most.

    Parameters
    ----------
    low, high
        The first place, and the one after the last.
    num_parts
        The number of parts.
    """

    def __init__(self, low: int, high: int, num_parts: int) -> None:
        self._low, self._size, self._num_parts = low, high - low, num_parts

    def __len__(self) -> int:
        """Return the number of parts."""
        return self._num_parts

    @overload
    def __getitem__(self, part: int) -> Ints: ...

    @overload
    def __getitem__(self, part: slice) -> Sequence[Ints]: ...

    def __getitem__(self, part: int | slice) -> Ints | Sequence[Ints]:
        """Return the places of a part, ``[places]``, int64."""
        if isinstance(part, slice):
            return [self[number] for number in range(self._num_parts)[part]]
        number = range(self._num_parts)[part]
        edges = [self._low + self._size * edge // self._num_parts for edge in (number, number + 1)]
        return np.arange(*edges, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class ShardedPlan:
    """An epoch's micro-batches, sharded round-robin among the ranks.

    In round ``j`` rank ``r`` takes micro-batch ``start + j * world_size + r``. An optimizer step of
    ``a`` rounds therefore takes ``a * world_size`` consecutive micro-batches, whatever the number
    of ranks. Every rank gets the same number of batches. The last round may have fewer
    micro-batches than ranks; ``last_round`` decides how it is completed:

    - ``"pad"``: the first ranks take the remaining micro-batches whole. Each other rank takes a
      copy of one of them, a padding batch, whose loss must be given zero weight.
    - ``"split"``: no row is repeated. The remaining rows are split again over all ranks. Fewer rows
      than ranks are merged into the preceding round, which gives some ranks one more row; the rows
      of two optimizer steps may then be in one. Without a preceding round they cannot be assigned:
      `unassigned_rows` counts them, and `check` raises.

    With ``drop_last`` an incomplete round is dropped.

    Parameters
    ----------
    plan
        The epoch.
    world_size
        The number of ranks.
    start
        The micro-batch at which sharding begins: 0, or where a resumed run has regrouped.
    drop_last
        Whether to drop an incomplete last round.
    last_round
        ``"split"`` or ``"pad"``.

    Attributes
    ----------
    full_rounds
        Rounds in which each rank takes a whole micro-batch of its own.
    split_round
        Of a last round that is split or merged, the places in the order of each rank's rows.
    padding_batches
        Padding batches in the last round.
    unassigned_rows
        Rows at the end that no rank takes.
    """

    plan: EpochPlan
    world_size: int = 1
    start: int = 0
    drop_last: bool = False
    last_round: LastRound = "split"
    full_rounds: int = field(init=False)
    split_round: Sequence[Ints] | None = field(init=False)
    padding_batches: int = field(init=False)
    unassigned_rows: int = field(init=False)

    def __post_init__(self) -> None:
        """Compute the last round."""
        full, remaining = divmod(self.plan.num_batches - self.start, self.world_size)
        first = self.start + full * self.world_size
        rows = self.plan.num_samples - int(self.plan.bounds[first])
        split: Sequence[Ints] | None = None
        padding = unassigned = 0
        if remaining and self.drop_last:
            unassigned = rows
        elif remaining and self.last_round == "pad":
            padding = self.world_size - remaining
        elif remaining and rows >= self.world_size:
            split = _split_rows(self.plan, first, self.world_size)
        elif remaining and rows and full:
            full -= 1
            split = _merge_rows(self.plan, first - self.world_size, self.world_size)
        elif remaining:
            unassigned = rows
        object.__setattr__(self, "full_rounds", full)
        object.__setattr__(self, "split_round", split)
        object.__setattr__(self, "padding_batches", padding)
        object.__setattr__(self, "unassigned_rows", unassigned)

    @property
    def num_rounds(self) -> int:
        """The number of batches of every rank."""
        return self.full_rounds + (self.split_round is not None or self.padding_batches > 0)

    def check(self) -> None:
        """Raise ValueError if rows at the end cannot be assigned to the ranks."""
        if self.unassigned_rows and not self.drop_last:
            raise ValueError(
                f"at least one row for each of {self.world_size} ranks is required to split the "
                f"end of an epoch, got {self.unassigned_rows}: use at most {self.unassigned_rows} "
                "ranks, or pass last_round='pad' to SaveableDataLoader, which adds padding batches"
            )

    def padding_batches_in(self, round_: int) -> int:
        """Return how many ranks, the last ones, get a padding batch in a round."""
        return self.padding_batches if round_ == self.full_rounds else 0

    def is_padding(self, round_: int, rank: int) -> bool:
        """Return whether a rank's batch is a copy of another rank's batch of the same round."""
        return rank >= self.world_size - self.padding_batches_in(round_)

    def rows(self, round_: int, rank: int) -> tuple[int, list[Any]]:
        """Return a rank's batch of a round: its place in the order, and its rows."""
        plan = self.plan
        if round_ < self.full_rounds + (self.padding_batches > 0):
            first = self.start + round_ * self.world_size
            # Padding batches are copies of the remaining ones, in turn.
            index = first + rank % (self.world_size - self.padding_batches_in(round_))
            low, high = int(plan.bounds[index]), int(plan.bounds[index + 1])
            return low, plan.rows(low, high)
        if self.split_round is None or round_ > self.full_rounds:
            raise IndexError(f"a round below {self.num_rounds} is required, got {round_!r}")
        places = self.split_round[rank]
        return int(places[0]), plan.rows_at(places)

    def batches(self, first: int, rank: int) -> Iterator[tuple[int, list[Any]]]:
        """Yield a rank's batches from a round on, as `rows` returns them.

        Rows that have to be computed are computed for many batches at a time.
        """
        number = first
        while number < self.num_rounds:
            if isinstance(self.plan.order, KeyedOrder) and number < self.full_rounds:
                block = self._block(number, rank)
                yield from block
                number += len(block)
            else:
                yield self.rows(number, rank)
                number += 1

    def _block(self, first: int, rank: int) -> list[tuple[int, list[Any]]]:
        """Return a rank's batches of a few rounds, which are all before the last one."""
        bounds, low = self.plan.bounds, self.start + first * self.world_size + rank
        count = max(1, _BLOCK_ROWS // max(1, int(bounds[low + 1] - bounds[low])))
        count = min(count, self.full_rounds - first)
        # [count]: the batches, where each begins in the order, and its number of rows
        batches = low + np.arange(count, dtype=np.int64) * self.world_size
        lows = bounds[batches]
        sizes = bounds[batches + 1] - lows
        ends = np.cumsum(sizes)
        # [sum(sizes)]: the places in the order
        places = np.arange(ends[-1], dtype=np.int64) + np.repeat(lows - (ends - sizes), sizes)
        rows = self.plan.rows_at(places)
        parts = zip(lows.tolist(), sizes.tolist(), ends.tolist(), strict=True)
        return [(place, rows[end - size : end]) for place, size, end in parts]

    def position_after(self, rounds: int) -> int:
        """Return how many micro-batches all ranks have consumed after some rounds."""
        if rounds >= self.num_rounds:
            return self.plan.num_batches
        return self.start + rounds * self.world_size

    def is_round_start(self, position: int) -> bool:
        """Return whether a round begins at a micro-batch, or the epoch ends there."""
        rounds, remainder = divmod(position - self.start, self.world_size)
        if position >= self.plan.num_batches:
            return True
        # After the last full round only an incomplete one begins; a merged one has begun before.
        return 0 <= rounds <= self.full_rounds and not remainder

    def rounds_before(self, position: int) -> int:
        """Return the number of rounds before a micro-batch at which a round begins."""
        if not self.is_round_start(position):
            sizes = resumable_world_sizes(self.plan, position, self.start, self.last_round)
            raise ValueError(
                f"a position at which a round of {self.world_size} ranks begins is required, got "
                f"micro-batch {position!r} of {self.plan.num_batches}: use one of the world sizes "
                f"{sizes}"
            )
        if position >= self.plan.num_batches:
            return self.num_rounds
        return min((position - self.start) // self.world_size, self.num_rounds)


def dividing_world_sizes(position: int, start: int = 0) -> list[int]:
    """Return the world sizes for which a round ends at a position."""
    consumed = position - start
    largest = min(consumed, _MAX_LISTED_WORLD_SIZE)
    return [size for size in range(1, largest + 1) if consumed % size == 0]


def resumable_world_sizes(
    plan: EpochPlan, position: int, start: int = 0, last_round: LastRound = "split"
) -> list[int]:
    """Return the world sizes that can resume from a position without losing a row."""
    return [
        size
        for size in dividing_world_sizes(position, start)
        if ShardedPlan(plan, size, start, last_round=last_round).is_round_start(position)
    ]


def _split_rows(plan: EpochPlan, first: int, world_size: int) -> Sequence[Ints]:
    """Split the rows from micro-batch `first` on, fewer batches than ranks, over all ranks."""
    low, high = int(plan.bounds[first]), plan.num_samples
    if plan.lengths is None:
        return EvenParts(low, high, world_size)
    # A part lies within one micro-batch: rows of different lengths padded to the longest could
    # need more memory than any batch of the plan.
    spans = [
        (int(a), int(b))
        for a, b in zip(plan.bounds[first:-1], plan.bounds[first + 1 :], strict=True)
    ]
    return tuple(np.arange(a, b) for a, b in _split_longest(spans, plan, world_size))


def _split_longest(
    spans: list[tuple[int, int]], plan: EpochPlan, num_parts: int
) -> list[tuple[int, int]]:
    """Split micro-batches into `num_parts` parts, always the part of the largest total length."""
    parts = [(a, b, 1) for a, b in spans if b > a]
    while sum(count for _, _, count in parts) < num_parts:
        index = max(
            (i for i, (a, b, count) in enumerate(parts) if b - a > count),
            key=lambda i: float(plan.row_lengths(*parts[i][:2]).sum()) / parts[i][2],
        )
        a, b, count = parts[index]
        parts[index] = (a, b, count + 1)
    out: list[tuple[int, int]] = []
    for a, b, count in parts:
        edges = [a + (b - a) * i // count for i in range(count + 1)]
        out.extend(itertools.pairwise(edges))
    return out


def _merge_rows(plan: EpochPlan, first: int, world_size: int) -> Sequence[Ints]:
    """Return the round from micro-batch `first` on, with the few rows after it merged in."""
    bounds = plan.bounds
    low, end = int(bounds[first]), int(bounds[first + world_size])
    if plan.lengths is None:
        return EvenParts(low, plan.num_samples, world_size)
    parts = [np.arange(bounds[first + r], bounds[first + r + 1]) for r in range(world_size)]
    longest = [float(plan.row_lengths(int(p[0]), int(p[-1]) + 1).max()) for p in parts]
    available = list(range(world_size))
    for row in range(end, plan.num_samples):
        length = float(plan.row_lengths(row, row + 1)[0])
        padded = [max(longest[r], length) * (len(parts[r]) + 1) for r in available]
        chosen = available.pop(int(np.argmin(padded)))
        parts[chosen] = np.append(parts[chosen], row)
    return tuple(parts)
