"""An epoch as one list of micro-batches, and how it is dealt to ranks.

Everything here is a pure function of integers: no rank, no clock and no generator of the process is
read. A plan does not know the number of ranks; a `Deal` does, and is worked out from the plan.
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:  # numpy.typing takes a while to import
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    Ints = npt.NDArray[Any]
    """Integers of 64 bits, or of 32 where that is enough."""
    Floats = npt.NDArray[np.float64]


LastRound = Literal["split", "fill"]
"""What becomes of a last round with fewer micro-batches than ranks, see `Deal`."""

_VALID_SIZES_UP_TO = 1024


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """One epoch: rows in the order of training, cut into micro-batches.

    Parameters
    ----------
    order
        The rows, ``[samples]``: an array of integers, or a list when a sampler yields other keys.
    bounds
        ``[batches + 1]``, int64. Micro-batch ``i`` is ``order[bounds[i]:bounds[i + 1]]``.
    lengths
        The length of each row of the data, ``[rows]``, for batches that vary; None for batches of
        one size. It decides how an incomplete round is split, see `Deal`.
    """

    order: Ints | Sequence[Any]
    bounds: Ints
    lengths: Floats | None = None

    @property
    def batches(self) -> int:
        """The number of micro-batches in the epoch."""
        return len(self.bounds) - 1

    @property
    def samples(self) -> int:
        """The number of rows that the micro-batches hold."""
        return int(self.bounds[-1])

    def rows(self, low: int, high: int) -> list[Any]:
        """Return rows ``low`` to ``high`` of the order."""
        part = self.order[low:high]
        return part.tolist() if isinstance(part, np.ndarray) else list(part)

    def batch(self, index: int) -> list[Any]:
        """Return the rows of one micro-batch."""
        return self.rows(int(self.bounds[index]), int(self.bounds[index + 1]))

    def costs(self, low: int, high: int) -> Floats:
        """Return the lengths of rows ``low`` to ``high`` of the order."""
        assert self.lengths is not None  # asked only where batches vary
        costs: Floats = self.lengths[np.asarray(self.order[low:high])]
        return costs

    def checksum(self) -> int:
        """Return a CRC-32 of the order and the cuts."""
        if isinstance(self.order, np.ndarray):
            crc = zlib.crc32(np.ascontiguousarray(self.order).data)
        else:
            crc = zlib.crc32(repr(list(self.order)).encode())
        return zlib.crc32(np.ascontiguousarray(self.bounds).data, crc)


@dataclass(frozen=True, eq=False)
class Deal:
    """Which rows each rank takes in each round: micro-batches ``start, start + 1, ...`` in turn.

    In round ``j`` rank ``r`` takes micro-batch ``start + j * world_size + r``, so that an optimizer
    step of ``a`` rounds takes ``a * world_size`` micro-batches that follow each other, whatever the
    number of ranks. Every rank gets the same number of batches. The last round may lack
    micro-batches; what becomes of it is ``last_round``:

    - ``"fill"``: the first ranks take the micro-batches that are left, whole, and each other rank
      is handed one of them again, a filler, which whoever trains on it must give the weight 0.
    - ``"split"``: no row is repeated. The rows that are left are split again over all ranks. Fewer
      rows than ranks join the round before, one more row on some ranks; the rows of two optimizer
      steps may thus come in one. With no round before, they cannot be dealt: `left_out` counts
      them, and `check` raises.

    With ``drop_last`` an incomplete round is left out, as asked.

    Parameters
    ----------
    plan
        The epoch.
    world_size
        The number of ranks.
    start
        The micro-batch at which dealing began: 0, or where a resumed run has regrouped.
    drop_last
        Leave an incomplete last round out.
    last_round
        ``"split"`` or ``"fill"``.
    """

    plan: EpochPlan
    world_size: int = 1
    start: int = 0
    drop_last: bool = False
    last_round: LastRound = "split"
    full_rounds: int = field(init=False)
    tail: tuple[Ints, ...] | None = field(init=False)
    fillers: int = field(init=False)
    left_out: int = field(init=False)

    def __post_init__(self) -> None:
        """Work the last round out."""
        whole, over = divmod(self.plan.batches - self.start, self.world_size)
        first = self.start + whole * self.world_size
        rest = self.plan.samples - int(self.plan.bounds[first])
        tail: tuple[Ints, ...] | None = None
        fillers = left_out = 0
        if over and self.drop_last:
            left_out = rest
        elif over and self.last_round == "fill":
            fillers = self.world_size - over
        elif over and rest >= self.world_size:
            tail = _split_round(self.plan, first, self.world_size)
        elif over and rest and whole:
            whole -= 1
            tail = _join_round(self.plan, first - self.world_size, self.world_size)
        elif over:
            left_out = rest
        object.__setattr__(self, "full_rounds", whole)
        object.__setattr__(self, "tail", tail)
        object.__setattr__(self, "fillers", fillers)
        object.__setattr__(self, "left_out", left_out)

    @property
    def rounds(self) -> int:
        """The number of batches of every rank."""
        return self.full_rounds + (self.tail is not None or self.fillers > 0)

    def check(self) -> None:
        """Refuse to lose rows that cannot be split over the ranks."""
        if self.left_out and not self.drop_last:
            raise ValueError(
                f"at least one row for each of {self.world_size} ranks is required to split what "
                f"is left of an epoch, got {self.left_out}: use at most {self.left_out} ranks, or "
                "give SaveableDataLoader last_round='fill', which hands rows out again and says so"
            )

    def fillers_in(self, round_: int) -> int:
        """Return how many ranks, the last ones, are handed a filler in a round."""
        return self.fillers if round_ == self.full_rounds else 0

    def is_filler(self, round_: int, rank: int) -> bool:
        """Tell whether a rank's batch is one that another rank has in the same round."""
        return rank >= self.world_size - self.fillers_in(round_)

    def rows(self, round_: int, rank: int) -> tuple[int, list[Any]]:
        """Return what a rank takes in a round: its place in the order, and the rows."""
        plan = self.plan
        if round_ < self.full_rounds + (self.fillers > 0):
            first = self.start + round_ * self.world_size
            # Fillers are taken in turn from those that are left.
            index = first + rank % (self.world_size - self.fillers_in(round_))
            low, high = int(plan.bounds[index]), int(plan.bounds[index + 1])
            return low, plan.rows(low, high)
        if self.tail is None or round_ > self.full_rounds:
            raise IndexError(f"a round below {self.rounds} is required, got {round_!r}")
        flat = self.tail[rank].tolist()
        order = plan.order
        picked = order[flat].tolist() if isinstance(order, np.ndarray) else [order[i] for i in flat]
        return flat[0], picked

    def position(self, rounds_done: int) -> int:
        """Return how many micro-batches all ranks have consumed after some rounds."""
        if rounds_done >= self.rounds:
            return self.plan.batches
        return self.start + rounds_done * self.world_size

    def reaches(self, position: int) -> bool:
        """Tell whether a round begins at a position, or the epoch ends there."""
        done, inside = divmod(position - self.start, self.world_size)
        if position >= self.plan.batches:
            return True
        # Past the last full round only an incomplete one begins; a joined one has begun before.
        return 0 <= done <= self.full_rounds and not inside

    def rounds_done(self, position: int) -> int:
        """Return the round that begins at a position, which must be a boundary."""
        if not self.reaches(position):
            raise ValueError(
                f"a position that {self.world_size} ranks reach and can go on from is required, "
                f"got micro-batch {position!r} of {self.plan.batches}: use one of the world sizes "
                f"{reaching_world_sizes(self.plan, position, self.start, self.last_round)}"
            )
        if position >= self.plan.batches:
            return self.rounds
        return min((position - self.start) // self.world_size, self.rounds)


def cut(order: Ints | Sequence[Any], batch_size: int, *, drop_last: bool = False) -> EpochPlan:
    """Cut an order into micro-batches of one size; the last may be shorter, or left out."""
    samples = len(order)
    batches = samples // batch_size if drop_last else -(-samples // batch_size)
    # [batches + 1]: 0, B, 2B, ..., and the end of the last micro-batch
    bounds = np.arange(batches + 1, dtype=np.int64) * batch_size
    bounds[-1] = min(int(bounds[-1]), samples)
    return EpochPlan(order, bounds)


def from_batches(batches: Iterable[Iterable[Any]]) -> EpochPlan:
    """Return the plan of batches that are listed one by one."""
    flat: list[Any] = []
    ends = [0]
    for batch in batches:
        flat.extend(batch)
        ends.append(len(flat))
    return EpochPlan(as_order(flat), np.asarray(ends, dtype=np.int64))


def as_order(rows: Sequence[Any]) -> Ints | Sequence[Any]:
    """Return rows as an int64 array where they are plain integers, else as they are."""
    if all(type(row) is int for row in rows):
        return np.asarray(rows, dtype=np.int64)
    return rows


def valid_world_sizes(position: int, start: int = 0) -> list[int]:
    """Return the world sizes that reach a position at the end of a round."""
    dealt = position - start
    return [size for size in range(1, min(dealt, _VALID_SIZES_UP_TO) + 1) if dealt % size == 0]


def reaching_world_sizes(
    plan: EpochPlan, position: int, start: int = 0, last_round: LastRound = "split"
) -> list[int]:
    """Return the world sizes that can go on from a position without leaving a row out."""
    return [
        size
        for size in valid_world_sizes(position, start)
        if Deal(plan, size, start, last_round=last_round).reaches(position)
    ]


def _split_round(plan: EpochPlan, first: int, world_size: int) -> tuple[Ints, ...]:
    """Share the rows from micro-batch `first` on, fewer batches than ranks, over all ranks."""
    low, high = int(plan.bounds[first]), plan.samples
    if plan.lengths is None:
        # [world_size + 1]: pieces whose sizes differ by one at most
        edges = low + (high - low) * np.arange(world_size + 1, dtype=np.int64) // world_size
        return tuple(np.arange(edges[r], edges[r + 1]) for r in range(world_size))
    # A piece never crosses two micro-batches: rows of unlike length padded together could need
    # more memory than any batch of the plan.
    spans = [
        (int(a), int(b))
        for a, b in zip(plan.bounds[first:-1], plan.bounds[first + 1 :], strict=True)
    ]
    return tuple(np.arange(a, b) for a, b in _halve_costliest(spans, plan, world_size))


def _halve_costliest(
    spans: list[tuple[int, int]], plan: EpochPlan, pieces: int
) -> list[tuple[int, int]]:
    """Cut micro-batches into `pieces` parts, the costliest part first."""
    parts = [(a, b, 1) for a, b in spans if b > a]
    while sum(count for _, _, count in parts) < pieces:
        index = max(
            (i for i, (a, b, count) in enumerate(parts) if b - a > count),
            key=lambda i: float(plan.costs(*parts[i][:2]).sum()) / parts[i][2],
        )
        a, b, count = parts[index]
        parts[index] = (a, b, count + 1)
    out: list[tuple[int, int]] = []
    for a, b, count in parts:
        edges = [a + (b - a) * i // count for i in range(count + 1)]
        out.extend(itertools.pairwise(edges))
    return out


def _join_round(plan: EpochPlan, first: int, world_size: int) -> tuple[Ints, ...]:
    """Return the round from micro-batch `first` on, with the few rows that follow it."""
    bounds = plan.bounds
    end = int(bounds[first + world_size])
    if plan.lengths is None:
        edges = (
            int(bounds[first])
            + (plan.samples - int(bounds[first]))
            * np.arange(world_size + 1, dtype=np.int64)
            // world_size
        )
        return tuple(np.arange(edges[r], edges[r + 1]) for r in range(world_size))
    parts = [np.arange(bounds[first + r], bounds[first + r + 1]) for r in range(world_size)]
    longest = [float(plan.costs(int(part[0]), int(part[-1]) + 1).max()) for part in parts]
    free = list(range(world_size))
    for row in range(end, plan.samples):
        length = float(plan.costs(row, row + 1)[0])
        padded = [max(longest[r], length) * (len(parts[r]) + 1) for r in free]
        chosen = free.pop(int(np.argmin(padded)))
        parts[chosen] = np.append(parts[chosen], row)
    return tuple(parts)
