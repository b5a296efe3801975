"""Reproducible samplers: the order of an epoch is a pure function of (seed, epoch).

Names, arguments and orders are those of ``speechbrain.dataio.sampler``. Each has `order` or `plan`,
which gives the whole epoch at once; iterating has no side effect.
"""

from __future__ import annotations

import contextlib
import itertools
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    WeightedRandomSampler,
)

from brain_data.order.plan import EpochPlan, as_order
from brain_data.order.seeding import DEFAULT_SEED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence, Sized

    from brain_data.order.plan import Ints


class ReproducibleRandomSampler(RandomSampler):
    """A random order that depends on ``seed + epoch`` only.

    Call `set_epoch` before each epoch, or let the loader do it; otherwise the order repeats.

    Parameters
    ----------
    data_source
        What to draw rows of; only its length is read.
    seed
        The base seed.
    epoch
        The epoch to start at.
    **kwargs
        ``replacement`` and ``num_samples`` of `torch.utils.data.RandomSampler`.

    Raises
    ------
    ValueError
        If a ``generator`` is given.

    Examples
    --------
    >>> sampler = ReproducibleRandomSampler(range(5))
    >>> first = list(sampler)
    >>> first == list(sampler)
    True
    """

    def __init__(
        self, data_source: Sized, seed: int = DEFAULT_SEED, epoch: int = 0, **kwargs: Any
    ) -> None:
        _refuse_generator(type(self).__name__, kwargs)
        super().__init__(data_source, **kwargs)
        self.seed = int(seed)
        self.epoch = epoch
        self.generator = torch.Generator()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def order(self) -> Ints:
        """Return the epoch's rows, ``[num_samples]``, int64."""
        self.generator.manual_seed(self.seed + self.epoch)
        rows = len(self.data_source)
        if not self.replacement and self.num_samples == rows:
            shuffled: Ints = torch.randperm(rows, generator=self.generator).numpy()
            return shuffled
        return np.fromiter(super().__iter__(), dtype=np.int64, count=self.num_samples)

    def settings(self) -> dict[str, Any]:
        """Return what decides the order, for the fingerprint of a saved position."""
        return {
            "sampler": type(self).__name__,
            "seed": self.seed,
            "replacement": self.replacement,
            "num_samples": self.num_samples,
        }

    def __iter__(self) -> Iterator[int]:
        """Iterate over the rows of the epoch."""
        return iter(self.order().tolist())


class ReproducibleWeightedRandomSampler(WeightedRandomSampler):
    """Rows drawn by weight, depending on ``seed + epoch`` only.

    Parameters
    ----------
    weights
        The weight of each row; they need not sum to one.
    num_samples
        How many rows an epoch draws.
    replacement
        Whether a row may be drawn twice in an epoch.
    seed
        The base seed.
    epoch
        The epoch to start at.
    **kwargs
        Handed to `torch.utils.data.WeightedRandomSampler`; no ``generator``.

    Examples
    --------
    >>> sampler = ReproducibleWeightedRandomSampler([0.1, 0.9, 0.4, 0.7, 3.0, 0.6], 5, True)
    >>> list(sampler)
    [3, 1, 4, 4, 4]
    >>> sampler.set_epoch(1)
    >>> list(sampler)
    [4, 5, 4, 4, 3]
    """

    def __init__(
        self,
        weights: Sequence[float],
        num_samples: int,
        replacement: bool,
        seed: int = 129491412,
        epoch: int = 0,
        **kwargs: Any,
    ) -> None:
        _refuse_generator(type(self).__name__, kwargs)
        super().__init__(weights, num_samples, replacement, **kwargs)
        self.seed = int(seed)
        self.epoch = epoch
        self.generator = torch.Generator()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def order(self) -> Ints:
        """Return the epoch's rows, ``[num_samples]``, int64."""
        self.generator.manual_seed(self.seed + self.epoch)
        drawn: Ints = torch.multinomial(
            self.weights, self.num_samples, self.replacement, generator=self.generator
        ).numpy()
        return drawn

    def settings(self) -> dict[str, Any]:
        """Return what decides the order, for the fingerprint of a saved position."""
        return {
            "sampler": type(self).__name__,
            "seed": self.seed,
            "replacement": self.replacement,
            "num_samples": self.num_samples,
            "weights": zlib.crc32(self.weights.contiguous().numpy().data),
        }

    def __iter__(self) -> Iterator[int]:
        """Iterate over the rows of the epoch."""
        return iter(self.order().tolist())


class BalancingDataSampler(ReproducibleWeightedRandomSampler):
    """Rows drawn so that each value of one key comes about equally often.

    Parameters
    ----------
    dataset
        A `DynamicItemDataset`.
    key
        The key whose values are balanced.
    num_samples
        How many rows an epoch draws; by default as many as there are.
    replacement
        Whether a row may be drawn twice in an epoch.
    seed
        The base seed.
    epoch
        The epoch to start at.
    **kwargs
        As for `ReproducibleWeightedRandomSampler`.
    """

    def __init__(
        self,
        dataset: Any,
        key: str,
        num_samples: int | None = None,
        replacement: bool = True,
        seed: int = DEFAULT_SEED,
        epoch: int = 0,
        **kwargs: Any,
    ) -> None:
        self.dataset = dataset
        self.key = key
        super().__init__(
            self._compute_weights(), num_samples or len(dataset), replacement, seed, epoch, **kwargs
        )

    def _compute_weights(self) -> Any:
        with self.dataset.output_keys_as([self.key]):
            values = [self.dataset[row][self.key] for row in range(len(self.dataset))]
        counts = Counter(values)
        return 1 / torch.tensor([counts[value] for value in values])


class ConcatDatasetBatchSampler(Sampler[list[int]]):
    """Batches that mix the parts of a `torch.utils.data.ConcatDataset` in fixed shares.

    With ``batch_sizes`` ``[8, 16]`` a batch holds 8 rows of the first part, then 16 of the second.
    An epoch ends when the first of the parts has no full share left.

    Parameters
    ----------
    samplers
        One sampler a part, in the order of the parts.
    batch_sizes
        How many rows of each part a batch takes.
    epoch
        The epoch to start at.

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
            raise ValueError(  # noqa: TRY004 - the reference's type
                f"samplers must be a list or tuple of samplers, got {samplers!r}: write [sampler]"
            )
        if not isinstance(batch_sizes, (list, tuple)):
            raise ValueError(  # noqa: TRY004 - the reference's type
                f"batch_sizes must be a list or tuple of integers, got {batch_sizes!r}: write [8]"
            )
        if len(samplers) != len(batch_sizes):
            raise ValueError(
                "samplers and batch_sizes must have the same length, got "
                f"{len(samplers)} and {len(batch_sizes)}: give one batch size a sampler"
            )
        if any(size < 1 for size in batch_sizes):
            raise ValueError(f"batch_sizes must be positive, got {batch_sizes!r}")
        self.samplers = samplers
        self.batch_sizes = batch_sizes
        # A part's offset is the size of the data before it: a sampler that draws more or fewer
        # rows than its part has would shift the parts after it.
        sizes = [_source_length(sampler) for sampler in samplers]
        self.offsets = [0, *itertools.accumulate(sizes[:-1])]
        self.epoch = epoch
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of every part's sampler."""
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
            # one row a batch
            columns.append(np.asarray(rows, dtype=np.int64).reshape(batches, size) + offset)
        # [batches * sum(sizes)]: each batch holds its share of every part in turn
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
        return (plan.batch(index) for index in range(plan.batches))

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        shares = zip(self.samplers, self.batch_sizes, strict=True)
        return min((len(sampler) // size for sampler, size in shares), default=0)


def order_of(sampler: Any, limit: int | None = None, *, seed: int | None = None) -> Any:
    """Return a sampler's epoch at once: its own `order`, else what iterating it gives.

    ``seed`` is what torch's RandomSampler has drawn for itself, see `Source.draw_seed`.
    """
    if hasattr(sampler, "order"):
        return sampler.order()[:limit]
    if type(sampler) is SequentialSampler:
        return np.arange(len(sampler), dtype=np.int64)[:limit]
    if type(sampler) is RandomSampler and seed is not None:
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(len(sampler.data_source), generator=generator).numpy()[:limit]
    return as_order(list(itertools.islice(sampler, limit)))


def settings_of(sampler: Any) -> dict[str, Any]:
    """Return what decides a sampler's order: its own `settings`, else its class and length."""
    if hasattr(sampler, "settings"):
        settings: dict[str, Any] = sampler.settings()
        return settings
    if type(sampler) is BatchSampler:
        cuts = {"batch_size": sampler.batch_size, "drop_last": sampler.drop_last}
        return settings_of(sampler.sampler) | cuts
    settings = {"sampler": type(sampler).__name__}
    if isinstance(sampler, DistributedSampler):  # torch's own, which gives one rank's part
        names = ("num_replicas", "shuffle", "seed", "drop_last", "total_size")
        return settings | {name: getattr(sampler, name) for name in names}
    with contextlib.suppress(TypeError):  # no length
        settings["length"] = len(sampler)
    return settings


def _source_length(sampler: Any) -> int:
    source = getattr(sampler, "data_source", None)
    return len(sampler) if source is None else len(source)


def _refuse_generator(name: str, kwargs: dict[str, Any]) -> None:
    if "generator" in kwargs:
        raise ValueError(
            f"{name} seeds a generator of its own, got generator={kwargs['generator']!r}: "
            "give seed= instead"
        )
