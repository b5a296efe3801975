"""Batches that mix several datasets in fixed proportions."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Sampler

from brain_data.order.plan import EpochPlan
from brain_data.order.sampler_order import order_of, settings_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class ConcatDatasetBatchSampler(Sampler[list[int]]):
    """Batches that mix the parts of a `torch.utils.data.ConcatDataset` in fixed proportions.

    With ``batch_sizes`` ``[8, 16]`` a batch holds 8 rows of the first part, then 16 of the second.
    An epoch ends when one of the parts has too few rows left for another batch.

    Parameters
    ----------
    samplers
        One sampler for each part, in the order of the parts.
    batch_sizes
        How many rows of each part are in a batch.
    epoch
        The first epoch.

    Raises
    ------
    ValueError
        If ``samplers`` or ``batch_sizes`` is not a list or tuple, or their lengths differ.
    """

    def __init__(
        self,
        samplers: Sequence[Any],
        batch_sizes: tuple[int, ...] | list[int],
        epoch: int = 0,
    ) -> None:
        if not isinstance(samplers, (list, tuple)):
            raise ValueError(  # noqa: TRY004 - SpeechBrain's type
                f"samplers must be a list or tuple of samplers, got {samplers!r}: write [sampler]"
            )
        if not isinstance(batch_sizes, (list, tuple)):
            raise ValueError(  # noqa: TRY004 - SpeechBrain's type
                f"batch_sizes must be a list or tuple of integers, got {batch_sizes!r}: write [8]"
            )
        if len(samplers) != len(batch_sizes):
            raise ValueError(
                "samplers and batch_sizes must have the same length, got "
                f"{len(samplers)} and {len(batch_sizes)}: give one batch size for each sampler"
            )
        if any(size < 1 for size in batch_sizes):
            raise ValueError(
                f"batch_sizes must be positive, got {batch_sizes!r}: leave a part out instead"
            )
        self.samplers = samplers
        self.batch_sizes = batch_sizes
        # The offset of a part is the size of the data before it: a sampler that draws more or fewer
        # rows than its part has would shift the following parts.
        sizes = [_source_length(sampler) for sampler in samplers]
        self.offsets = [0, *itertools.accumulate(sizes[:-1])]
        self.epoch = epoch
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the sampler of each part."""
        self.epoch = epoch
        for sampler in self.samplers:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)

    def plan(self) -> EpochPlan:
        """Return the epoch's batches."""
        batches = len(self)
        columns = []
        for sampler, size, offset in zip(
            self.samplers, self.batch_sizes, self.offsets, strict=True
        ):
            rows = order_of(sampler, batches * size)
            # one batch in each row of the array
            columns.append(np.asarray(rows, dtype=np.int64).reshape(batches, size) + offset)
        # [batches * sum(sizes)]: each batch holds its rows of every part in turn
        order = np.concatenate(columns, axis=1).reshape(-1)
        width = sum(self.batch_sizes)
        return EpochPlan(order, np.arange(batches + 1, dtype=np.int64) * width)

    def settings(self) -> dict[str, Any]:
        """Return what decides the batches, for the fingerprint of a saved position."""
        return {
            "sampler": type(self).__name__,
            "batch_sizes": list(self.batch_sizes),
            "parts": [settings_of(sampler) for sampler in self.samplers],
        }

    def __iter__(self) -> Iterator[list[int]]:
        """Iterate over the batches of the epoch."""
        plan = self.plan()
        return (plan.batch(index) for index in range(plan.num_batches))

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        parts = zip(self.samplers, self.batch_sizes, strict=True)
        return min((len(sampler) // size for sampler, size in parts), default=0)


def _source_length(sampler: Any) -> int:
    source = getattr(sampler, "data_source", None)
    return len(sampler) if source is None else len(source)
