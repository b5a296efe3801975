"""Batches of varying size: rows of similar length in one batch, planned from the lengths.

Buckets and batches are those of ``speechbrain.dataio.sampler.DynamicBatchSampler``. The plan is
computed with array operations, once an epoch, and iterating has no side effect.
"""

from __future__ import annotations

import logging
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Sampler

from brain_data.order.buckets import (
    batch_size_of_each,
    check_lengths,
    checksum_of_edges,
    place_boundaries,
    read_lengths,
)
from brain_data.order.plan import EpochPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from brain_data.order.plan import Floats, Ints

BALANCE_OVER = 12
"""Consecutive batches of similar total length: a multiple of 2, 3, 4, 6 and 12 ranks."""

_ORDERINGS = ("random", "ascending", "descending")
_WARPINGS = ("lognormal", "quantile")

logger = logging.getLogger(__name__)


def _duration(row: Any) -> Any:
    return row["duration"]


class DynamicBatchSampler(Sampler[list[int]]):
    """Batches of rows of similar length, whose padded length stays below a limit.

    Rows are sorted into buckets by length. Each bucket has a batch size, so that a batch padded to
    the bucket's longest row is at most ``max_batch_length`` long. Each epoch has other batches in
    another order; both are functions of (seed, epoch, lengths, these arguments) only.

    Parameters
    ----------
    dataset
        A `DynamicItemDataset`, or any sized dataset when ``lengths_list`` is given.
    max_batch_length
        The maximum padded length of a batch, in the unit of the lengths.
    num_buckets
        The number of buckets. Fewer buckets give more random batches, more buckets less padding.
    length_func
        Takes a row's data (a mapping) and returns its length; default: its ``"duration"``.
    shuffle
        Whether rows are shuffled before they are batched.
    batch_ordering
        ``"random"``, or ``"ascending"`` or ``"descending"`` by a batch's longest row.
    max_batch_ex
        The maximum number of rows in a batch.
    bucket_boundaries
        The right edges of the buckets, ascending; overrides ``num_buckets``. If the last one is
        above ``max_batch_length``, a row longer than that is a batch of its own, and a warning is
        logged.
    lengths_list
        The length of each row, in the order of the dataset; overrides ``length_func``.
    seed
        The base seed.
    epoch
        The first epoch.
    drop_last
        Whether to drop the rows of batches that are not full.
    verbose
        Whether to log the statistics of each batch in epoch 0, at level DEBUG.
    warping
        How ``num_buckets`` boundaries are placed: ``"lognormal"`` as in SpeechBrain, or
        ``"quantile"``, which gives each bucket the same number of rows.
    balance_over
        With random ordering, the number of consecutive batches of similar total length, so that
        the ranks of a step have similar work. The groups are in random order. 1 gives
        SpeechBrain's order.

    Raises
    ------
    ValueError
        If a row is longer than ``max_batch_length`` and no boundary is, a length is negative or not
        finite, there are not as many lengths as rows, or an option is not one of those above.
    RuntimeError
        If neither ``num_buckets`` nor ``bucket_boundaries`` is given.

    Examples
    --------
    >>> lengths = [3, 9, 4, 8, 3, 9]
    >>> sampler = DynamicBatchSampler(lengths, 18, bucket_boundaries=[4, 9], lengths_list=lengths,
    ...                               shuffle=False, batch_ordering="ascending")
    >>> list(sampler)
    [[0, 2, 4], [1, 3], [5]]
    """

    def __init__(
        self,
        dataset: Any,
        max_batch_length: float,
        num_buckets: int | None = None,
        length_func: Callable[[Any], Any] = _duration,
        shuffle: bool = True,
        batch_ordering: str = "random",
        max_batch_ex: int | None = None,
        bucket_boundaries: Sequence[float] = (),
        lengths_list: Sequence[float] | None = None,
        seed: int = 42,
        epoch: int = 0,
        drop_last: bool = False,
        verbose: bool = False,
        *,
        warping: str = "lognormal",
        balance_over: int = BALANCE_OVER,
    ) -> None:
        _check_option("batch_ordering", batch_ordering, _ORDERINGS)
        _check_option("warping", warping, _WARPINGS)
        if num_buckets is None and len(bucket_boundaries) == 0:
            raise RuntimeError(
                "num_buckets or bucket_boundaries is required, got neither: "
                "give for example num_buckets=20"
            )
        self._dataset = dataset
        self._shuffle_ex = shuffle
        self._batch_ordering = batch_ordering
        self._max_batch_length = max_batch_length
        self._max_batch_ex = max_batch_ex
        self._drop_last = drop_last
        self._verbose = verbose
        self._group_size = max(1, balance_over)
        self.seed = int(seed)
        self.epoch = epoch
        self.lengths = read_lengths(dataset, length_func, lengths_list)
        check_lengths(dataset, self.lengths, max_batch_length, bucket_boundaries)
        self.bucket_boundaries = place_boundaries(
            self.lengths, max_batch_length, num_buckets, bucket_boundaries, warping
        )
        self.bucket_sizes = batch_size_of_each(
            self.bucket_boundaries, max_batch_length, max_batch_ex, len(self.lengths)
        )
        # [rows]: 16 bits, which numpy sorts by radix
        self._buckets = np.searchsorted(self.bucket_boundaries, self.lengths).astype(np.uint16)
        self._counts = np.bincount(self._buckets, minlength=len(self.bucket_sizes))
        self._lengths_checksum = zlib.crc32(self.lengths.data)
        self._planned: tuple[int, EpochPlan] | None = None
        self._log_buckets()

    def get_durations(self, batch: Sequence[int]) -> list[float]:
        """Return the lengths of a batch's rows."""
        lengths: list[float] = self.lengths[np.asarray(batch, dtype=np.int64)].tolist()
        return lengths

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose batches the next iteration yields."""
        self.epoch = epoch

    def plan(self) -> EpochPlan:
        """Return the epoch's batches; the result is cached until the epoch changes."""
        if self._planned is None or self._planned[0] != self.epoch:
            self._planned = None  # frees the old plan before the new one is computed
            plan = self._compute_plan()
            self._planned = (self.epoch, plan)
            if self._verbose and self.epoch == 0:
                self._log_batches(plan)
        return self._planned[1]

    def settings(self) -> dict[str, Any]:
        """Return what decides the batches, for the fingerprint of a saved position."""
        return {
            "sampler": type(self).__name__,
            "seed": self.seed,
            "shuffle": self._shuffle_ex,
            "batch_ordering": self._batch_ordering,
            "max_batch_length": self._max_batch_length,
            "max_batch_ex": self._max_batch_ex,
            "drop_last": self._drop_last,
            "balance_over": self._group_size,
            "bucket_edges": checksum_of_edges(self.bucket_boundaries),
            "lengths": self._lengths_checksum,
        }

    def __iter__(self) -> Iterator[list[int]]:
        """Iterate over the batches of the epoch."""
        plan = self.plan()
        return (plan.batch(index) for index in range(plan.num_batches))

    def __len__(self) -> int:
        """Return the number of batches, the same in every epoch."""
        full, remaining = np.divmod(self._counts, self.bucket_sizes)
        return int(full.sum() if self._drop_last else (full + (remaining > 0)).sum())

    def _compute_plan(self) -> EpochPlan:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        rows = len(self.lengths)
        # 32 bits are enough for any dataset in memory; the permutation is the same.
        shuffled: Ints = (
            torch.randperm(rows, generator=generator, dtype=torch.int32).numpy()
            if self._shuffle_ex
            else np.arange(rows, dtype=np.int32)
        )
        # [rows]: places in `shuffled`, bucket by bucket, each bucket in shuffled order
        places = np.argsort(self._buckets[shuffled], kind="stable")
        shuffled = shuffled[places]
        starts, ends = self._batch_spans()
        batch_order = self._order_batches(shuffled, places[ends - 1], starts, ends)
        del places
        starts, ends = starts[batch_order], ends[batch_order]
        sizes = ends - starts
        bounds = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])
        # [samples]: for each batch its slice of `shuffled`, one after the other
        slices = np.arange(bounds[-1], dtype=np.int32)
        slices += np.repeat((starts - bounds[:-1]).astype(np.int32), sizes)
        return EpochPlan(shuffled[slices], bounds, self.lengths)

    def _batch_spans(self) -> tuple[Ints, Ints]:
        """Return where each batch begins and ends, ``[batches]`` each, in rows sorted by bucket."""
        starts, ends = [], []
        begin = 0
        for count, size in zip(self._counts.tolist(), self.bucket_sizes.tolist(), strict=True):
            stop = begin + (count - count % size if self._drop_last else count)
            cuts = np.arange(begin, stop, size, dtype=np.int64)
            starts.append(cuts)
            ends.append(np.minimum(cuts + size, stop))
            begin += count
        return np.concatenate(starts), np.concatenate(ends)

    def _order_batches(self, rows: Ints, last_places: Ints, starts: Ints, ends: Ints) -> Ints:
        """Return the order of the batches, ``[batches]``.

        ``rows`` are sorted by bucket; ``last_places`` holds the place of each batch's last row in
        shuffled order.
        """
        batches = len(starts)
        if batches == 0:
            return starts
        # The order in which batches fill up if rows are added one by one: full batches by their
        # last row, then incomplete ones by bucket.
        is_incomplete = ends - starts < self.bucket_sizes[self._buckets[rows[starts]]]
        filled_at = np.where(is_incomplete, len(rows), last_places)
        filled = np.argsort(filled_at, kind="stable")
        if self._batch_ordering == "random":
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            order: Ints = filled[torch.randperm(batches, generator=generator).numpy()]
            if self._group_size == 1:
                return order
            sums = np.concatenate([np.zeros(1), np.cumsum(self.lengths[rows])])
            totals = sums[ends] - sums[starts]
            return _group_by_total_length(order, totals, ends - starts, self._group_size, generator)
        # There may be dropped rows between two batches, so the end of each batch is an edge too;
        # the sentinel makes the last end a valid one.
        edges = np.stack([starts, ends], axis=1).reshape(-1)
        longest = np.maximum.reduceat(np.append(self.lengths[rows], 0.0), edges)[::2][filled]
        sign = -1.0 if self._batch_ordering == "descending" else 1.0
        by_longest: Ints = filled[np.argsort(sign * longest, kind="stable")]
        return by_longest

    def _log_buckets(self) -> None:
        if not logger.isEnabledFor(logging.DEBUG):
            return
        edges = [0.0, *self.bucket_boundaries.tolist(), float("inf")]
        for index, (count, size) in enumerate(zip(self._counts, self.bucket_sizes, strict=True)):
            logger.debug(
                "bucket %d: lengths over %.1f up to %.1f, %d rows, %d a batch",
                index, edges[index], edges[index + 1], count, size,
            )  # fmt: skip

    def _log_batches(self, plan: EpochPlan) -> None:
        for index in range(plan.num_batches):
            durations = self.get_durations(plan.batch(index))
            total, padded = sum(durations), max(durations) * len(durations)
            logger.debug(
                "batch %d: %d rows, total length %.1f, %.1f of it padding",
                index, len(durations), padded, padded - total,
            )  # fmt: skip


def _group_by_total_length(
    order: Ints, totals: Floats, sizes: Ints, group_size: int, generator: torch.Generator
) -> Ints:
    """Reorder batches into groups of similar total length, the groups in random order.

    Batches that do not fill a group come last, the one with the most rows at the very end: if the
    last round of several ranks is incomplete, that batch can be split.
    """
    remainder = len(order) % group_size
    rest, body = order[:remainder], order[remainder:]
    body = body[np.argsort(totals[body], kind="stable")]
    groups = torch.randperm(len(body) // group_size, generator=generator).numpy()
    body = body.reshape(-1, group_size)[groups].reshape(-1)
    rest = rest[np.argsort(totals[rest], kind="stable")]
    if remainder:
        most = int(np.argmax(sizes[rest]))
        rest = np.concatenate([np.delete(rest, most), rest[most : most + 1]])
    return np.concatenate([body, rest])


def _check_option(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices!r}, got {value!r}: use one of these")
