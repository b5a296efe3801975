"""The lengths of rows, and the buckets that rows of similar length are sorted into."""

from __future__ import annotations

import logging
import zlib
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from brain_data.order.plan import Floats, Ints

logger = logging.getLogger(__name__)


def read_lengths(
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


def check_lengths(
    dataset: Any, lengths: Floats, limit: float, boundaries: Sequence[float] = ()
) -> None:
    """Raise ValueError for lengths that cannot be batched, naming the first few rows.

    If a given boundary is above the limit, rows may be longer than it, too: each is a batch of its
    own, and a warning is logged.
    """
    invalid = ~np.isfinite(lengths) | (lengths < 0)
    if invalid.any():
        rows = _named_rows(dataset, lengths, invalid)
        raise ValueError(
            f"each row needs a finite length of at least 0, got {rows}: correct the lengths, or "
            "filter those rows out"
        )
    invalid = lengths > limit
    if not invalid.any():
        return
    rows = _named_rows(dataset, lengths, invalid)
    if len(boundaries) > 0 and max(boundaries) > limit:
        logger.warning(
            "Longer than max_batch_length=%r, and in batches of their own, as bucket_boundaries "
            "go up to %r: %s",
            limit, max(boundaries), rows,
        )  # fmt: skip
        return
    raise ValueError(
        f"each row needs a length of at most max_batch_length={limit!r}, got {rows}: raise the "
        "limit, or filter those rows out"
    )


def place_boundaries(
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
        raise ValueError(
            f"num_buckets must be at least 1, got {num_buckets!r}: give for example num_buckets=20"
        )
    if warping == "quantile":
        shares = np.arange(1, num_buckets + 1) / num_buckets
        quantiles = np.quantile(lengths, shares) if len(lengths) else np.asarray([float(limit)])
        return np.unique(quantiles)
    # Quantiles of the standard lognormal distribution at equal steps, scaled so that the last one
    # is the limit. torch's function avoids a requirement of scipy.
    latent = np.linspace(1 / (num_buckets + 1), num_buckets / (num_buckets + 1), num_buckets)
    quantiles = torch.special.ndtri(torch.from_numpy(latent)).tolist()
    # numpy's exp differs in the last bit between its versions and processors.
    warped = np.asarray([float(Decimal(quantile).exp()) for quantile in quantiles])
    return np.sort(warped * limit / warped[-1])


def checksum_of_edges(edges: Floats) -> int:
    """Return the same number on every machine, whose last bits of the edges may differ."""
    return zlib.crc32(" ".join(f"{edge:.9g}" for edge in edges.tolist()).encode())


def batch_size_of_each(edges: Floats, limit: float, max_rows: int | None, rows: int) -> Ints:
    """Return the batch size of each bucket, ``[buckets + 1]``; beyond the last edge it is one."""
    # One more than there are rows is no limit, and a batch of all rows is not a full one.
    most = max(1, rows + 1 if max_rows is None else int(max_rows))
    sizes = [most if edge == 0 else max(1, min(most, int(limit / edge))) for edge in edges.tolist()]
    return np.asarray([*sizes, 1], dtype=np.int64)


def _length_of(length_func: Callable[[Any], Any], data: Any, row: int, dataset: Any) -> float:
    try:
        return float(length_func(data))
    except Exception as error:
        raise ValueError(
            f"length_func must return a number for every row, got {error!r} for row {row} "
            f"(id {dataset.data_ids[row]!r}){_file_of(dataset)}: give another length_func, or "
            "lengths_list"
        ) from error


def _file_of(dataset: Any) -> str:
    """Name the file that a dataset was read from, for an error."""
    source = getattr(getattr(dataset, "pipeline", None), "source", None)
    return "" if source is None else f" of {source}"


def _named_rows(dataset: Any, lengths: Floats, selected: Any) -> str:
    """Return the number of selected rows of a dataset, and the first few with their lengths."""
    rows = np.flatnonzero(selected)
    ids = getattr(dataset, "data_ids", None)
    shown = ", ".join(
        f"row {row}" + ("" if ids is None else f" (id {ids[row]!r})") + f": {float(lengths[row])!r}"
        for row in rows[:5].tolist()
    )
    return f"{len(rows)} rows{_file_of(dataset)} with another length ({shown})"
