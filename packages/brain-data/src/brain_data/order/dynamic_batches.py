"""Batches of varying size: rows of like length together, planned from the lengths.

The buckets and their fill are those of ``speechbrain.dataio.sampler.DynamicBatchSampler``; the plan
is made with array operations, once an epoch, and iterating has no side effect.
"""

from __future__ import annotations

import logging
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Sampler

from brain_data.order.plan import EpochPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from brain_data.order.plan import Floats, Ints

BALANCE_OVER = 12
"""Batches of like total length that follow each other: so 2, 3, 4, 6 and 12 ranks share them."""

_ORDERINGS = ("random", "ascending", "descending")
_WARPINGS = ("lognormal", "quantile")

logger = logging.getLogger(__name__)


def _duration(row: Any) -> Any:
    return row["duration"]


class DynamicBatchSampler(Sampler[list[int]]):
    """Batches whose padded length stays under a limit, of rows of like length.

    Rows are sorted into buckets by length; each bucket has a batch size, so that a batch padded to
    the bucket's longest row is at most ``max_batch_length`` long. A new epoch has other batches in
    another order, both functions of (seed, epoch, lengths, these arguments) only.

    Parameters
    ----------
    dataset
        A `DynamicItemDataset`, or any sized dataset when ``lengths_list`` is given.
    max_batch_length
        The limit of a batch's padded length, in the unit of the lengths.
    num_buckets
        How many buckets. Few give more random batches, many less padding.
    length_func
        Takes a row's data (a mapping) and returns its length; by default its ``"duration"``.
    shuffle
        Whether rows are shuffled before they are batched.
    batch_ordering
        ``"random"``, or ``"ascending"`` or ``"descending"`` by a batch's longest row.
    max_batch_ex
        The most rows in a batch.
    bucket_boundaries
        The buckets' right edges, ascending; overrides ``num_buckets``.
    lengths_list
        The length of each row, in the order of the dataset; overrides ``length_func``.
    seed
        The base seed.
    epoch
        The epoch to start at.
    drop_last
        Leave out the rows that are left in part-filled buckets.
    verbose
        Log each batch's statistics in epoch 0, at level DEBUG.
    warping
        How ``num_buckets`` boundaries are placed: ``"lognormal"`` as in the reference, or
        ``"quantile"`` so that each bucket gets equally many rows.
    balance_over
        With random ordering, so many batches of like total length follow each other (the runs are
        in random order), so that the ranks of a step have like work. 1 gives the reference's order.

    Raises
    ------
    ValueError
        If a row is longer than ``max_batch_length``, a length is negative or not finite, there are
        not as many lengths as rows, or an option is not one of those above.
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
        self._balance_over = max(1, balance_over)
        self.seed = int(seed)
        self.epoch = epoch
        self.lengths = _read_lengths(dataset, length_func, lengths_list)
        _check_lengths(dataset, self.lengths, max_batch_length)
        self.bucket_boundaries = _boundaries(
            self.lengths, max_batch_length, num_buckets, bucket_boundaries, warping
        )
        self.bucket_sizes = _bucket_sizes(
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
        """Choose the epoch whose batches the next iteration gives."""
        self.epoch = epoch

    def plan(self) -> EpochPlan:
        """Return the epoch's batches, kept until the epoch changes."""
        if self._planned is None or self._planned[0] != self.epoch:
            self._planned = None  # the old plan's memory is free before the new one is made
            plan = self._make_plan()
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
            "balance_over": self._balance_over,
            "buckets": zlib.crc32(self.bucket_boundaries.data),
            "lengths": self._lengths_checksum,
        }

    def __iter__(self) -> Iterator[list[int]]:
        """Iterate over the batches of the epoch."""
        plan = self.plan()
        return (plan.batch(index) for index in range(plan.batches))

    def __len__(self) -> int:
        """Return the number of batches, which is the same in every epoch."""
        whole, rest = np.divmod(self._counts, self.bucket_sizes)
        return int(whole.sum() if self._drop_last else (whole + (rest > 0)).sum())

    def _make_plan(self) -> EpochPlan:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        rows = len(self.lengths)
        # 32 bits hold any row that fits in memory; the values drawn are the same.
        shuffled: Ints = (
            torch.randperm(rows, generator=generator, dtype=torch.int32).numpy()
            if self._shuffle_ex
            else np.arange(rows, dtype=np.int32)
        )
        # [rows]: places in `shuffled`, bucket by bucket, each bucket in shuffled order
        places = np.argsort(self._buckets[shuffled], kind="stable")
        shuffled = shuffled[places]
        starts, ends = self._chunks()
        batch_order = self._order_batches(shuffled, places[ends - 1], starts, ends)
        del places
        starts, ends = starts[batch_order], ends[batch_order]
        sizes = ends - starts
        bounds = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])
        # [samples]: for each batch its run of `shuffled`, one after the other
        runs = np.arange(bounds[-1], dtype=np.int32)
        runs += np.repeat((starts - bounds[:-1]).astype(np.int32), sizes)
        return EpochPlan(shuffled[runs], bounds, self.lengths)

    def _chunks(self) -> tuple[Ints, Ints]:
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

        ``rows`` are sorted by bucket; ``last_places`` says where in shuffled order each batch's
        last row was.
        """
        batches = len(starts)
        if batches == 0:
            return starts
        # As they are filled when rows come one by one: full batches by their last row, then the
        # part-filled ones by bucket.
        part_filled = ends - starts < self.bucket_sizes[self._buckets[rows[starts]]]
        filled_at = np.where(part_filled, len(rows), last_places)
        filled = np.argsort(filled_at, kind="stable")
        if self._batch_ordering == "random":
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            order: Ints = filled[torch.randperm(batches, generator=generator).numpy()]
            if self._balance_over == 1:
                return order
            sums = np.concatenate([np.zeros(1), np.cumsum(self.lengths[rows])])
            totals = sums[ends] - sums[starts]
            return _runs_of_like_cost(order, totals, ends - starts, self._balance_over, generator)
        # Between two batches there may be rows that are left out, so that each batch's end is a
        # cut too; the sentinel lets the last end be one.
        cuts = np.stack([starts, ends], axis=1).reshape(-1)
        longest = np.maximum.reduceat(np.append(self.lengths[rows], 0.0), cuts)[::2][filled]
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
        for index in range(plan.batches):
            durations = self.get_durations(plan.batch(index))
            total, padded = sum(durations), max(durations) * len(durations)
            logger.debug(
                "batch %d: %d rows, total length %.1f, %.1f of it padding",
                index, len(durations), padded, padded - total,
            )  # fmt: skip


def _runs_of_like_cost(
    order: Ints, totals: Floats, sizes: Ints, run: int, generator: torch.Generator
) -> Ints:
    """Reorder batches into runs of like total length, the runs in random order.

    What does not fill a run comes last, with the batch of most rows at the very end: where the last
    round of several ranks is incomplete, that batch can be split.
    """
    left = len(order) % run
    rest, body = order[:left], order[left:]
    body = body[np.argsort(totals[body], kind="stable")]
    runs = torch.randperm(len(body) // run, generator=generator).numpy()
    body = body.reshape(-1, run)[runs].reshape(-1)
    rest = rest[np.argsort(totals[rest], kind="stable")]
    if left:
        most = int(np.argmax(sizes[rest]))
        rest = np.concatenate([np.delete(rest, most), rest[most : most + 1]])
    return np.concatenate([body, rest])


def _read_lengths(
    dataset: Any, length_func: Callable[[Any], Any], lengths_list: Sequence[float] | None
) -> Floats:
    """Return the length of each row, ``[rows]``, float64."""
    if lengths_list is not None:
        lengths = np.asarray(lengths_list, dtype=np.float64)
        if lengths.ndim != 1 or len(lengths) != len(dataset):
            raise ValueError(
                f"lengths_list must hold one length for each of the {len(dataset)} rows, got shape "
                f"{lengths.shape!r}: give the lengths in the order of the dataset"
            )
        return lengths
    if not (hasattr(dataset, "data_ids") and hasattr(dataset, "data")):
        raise NotImplementedError(
            "length_func needs a DynamicItemDataset, got "
            f"{type(dataset).__name__!r}: give lengths_list instead"
        )
    rows = (
        _length_of(length_func, dataset.data[data_id], row, dataset)
        for row, data_id in enumerate(dataset.data_ids)
    )
    return np.fromiter(rows, dtype=np.float64, count=len(dataset))


def _length_of(length_func: Callable[[Any], Any], data: Any, row: int, dataset: Any) -> float:
    try:
        return float(length_func(data))
    except Exception as error:
        raise ValueError(
            f"length_func must return a number for every row, got {error!r} for row {row} "
            f"(id {dataset.data_ids[row]!r}){_of_file(dataset)}: give another length_func, or "
            "lengths_list"
        ) from error


def _of_file(dataset: Any) -> str:
    """Name the file that a dataset was read from, for an error."""
    source = getattr(getattr(dataset, "pipeline", None), "source", None)
    return "" if source is None else f" of {source}"


def _check_lengths(dataset: Any, lengths: Floats, limit: float) -> None:
    """Refuse lengths that cannot be batched, with the first few rows that have them."""
    for bad, what in (
        (~np.isfinite(lengths) | (lengths < 0), "a finite length of at least 0"),
        (lengths > limit, f"a length of at most max_batch_length={limit!r}"),
    ):
        rows = np.flatnonzero(bad)
        if len(rows) == 0:
            continue
        ids = getattr(dataset, "data_ids", None)
        shown = ", ".join(
            f"row {row}"
            + ("" if ids is None else f" (id {ids[row]!r})")
            + f": {float(lengths[row])!r}"
            for row in rows[:5].tolist()
        )
        raise ValueError(
            f"each row needs {what}, got {len(rows)}{_of_file(dataset)} that have not ({shown}): "
            "raise the limit, or filter those rows out"
        )


def _boundaries(
    lengths: Floats,
    limit: float,
    num_buckets: int | None,
    given: Sequence[float],
    warping: str,
) -> Floats:
    """Return the right edges of the buckets, ``[buckets]``, ascending."""
    if len(given) > 0:
        edges = np.asarray(given, dtype=np.float64)
        if (edges < 0).any() or (np.diff(edges) <= 0).any():
            raise ValueError(
                "bucket_boundaries must be non-negative, ascending and without duplicates, got "
                f"{list(given)!r}: write sorted(set(boundaries))"
            )
        return edges
    if num_buckets is None or num_buckets < 1:
        raise ValueError(f"num_buckets must be at least 1, got {num_buckets!r}")
    if warping == "quantile":
        shares = np.arange(1, num_buckets + 1) / num_buckets
        quantiles = np.quantile(lengths, shares) if len(lengths) else np.asarray([float(limit)])
        return np.unique(quantiles)
    # Quantiles of the standard lognormal distribution at equal steps, stretched so that the last
    # one is the limit; torch's function saves the requirement of scipy.
    latent = np.linspace(1 / (num_buckets + 1), num_buckets / (num_buckets + 1), num_buckets)
    warped = np.exp(torch.special.ndtri(torch.from_numpy(latent)).numpy())
    return np.sort(warped * limit / warped[-1])


def _bucket_sizes(edges: Floats, limit: float, max_rows: int | None, rows: int) -> Ints:
    """Return the rows in a batch of each bucket, ``[buckets + 1]``; beyond the last edge, one."""
    most = max(1, rows if max_rows is None else int(max_rows))
    sizes = [most if edge == 0 else max(1, min(most, int(limit / edge))) for edge in edges.tolist()]
    return np.asarray([*sizes, 1], dtype=np.int64)


def _check_option(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices!r}, got {value!r}")
