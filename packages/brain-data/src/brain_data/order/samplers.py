"""Reproducible samplers: the order of an epoch is a pure function of (seed, epoch).

Names, arguments and orders are those of ``speechbrain.dataio.sampler``. Each sampler has `order`,
which returns the whole epoch at once; iterating has no side effect.
"""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import RandomSampler, Sampler, WeightedRandomSampler

from brain_data.order.seeding import DEFAULT_SEED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence, Sized

    from brain_data.order.plan import Ints


class _EpochSampler(Sampler[int]):
    """A sampler whose generator is seeded with ``seed + epoch`` for each epoch."""

    seed: int
    epoch: int
    generator: torch.Generator

    def _set_seed(self, seed: int, epoch: int) -> None:
        self.seed = int(seed)
        self.epoch = epoch
        self.generator = torch.Generator()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order the next iteration yields."""
        self.epoch = epoch

    @abstractmethod
    def order(self) -> Ints:
        """Return the epoch's rows, ``[num_samples]``, int64."""

    def __iter__(self) -> Iterator[int]:
        """Iterate over the rows of the epoch."""
        return iter(self.order().tolist())


class ReproducibleRandomSampler(_EpochSampler, RandomSampler):
    """A random order that depends on ``seed + epoch`` only.

    Call `set_epoch` before each epoch, or let the loader call it; otherwise the order repeats.

    Parameters
    ----------
    data_source
        The data to sample from; only its length is read.
    seed
        The base seed.
    epoch
        The first epoch.
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
        _check_no_generator(type(self).__name__, kwargs)
        RandomSampler.__init__(self, data_source, **kwargs)
        self._set_seed(seed, epoch)

    def order(self) -> Ints:
        """Return the epoch's rows, ``[num_samples]``, int64."""
        self.generator.manual_seed(self.seed + self.epoch)
        rows = len(self.data_source)
        if not self.replacement and self.num_samples == rows:
            shuffled: Ints = torch.randperm(rows, generator=self.generator).numpy()
            return shuffled
        drawn = RandomSampler.__iter__(self)
        return np.fromiter(drawn, dtype=np.int64, count=self.num_samples)

    def settings(self) -> dict[str, Any]:
        """Return what decides the order, for the fingerprint of a saved position."""
        return {
            "sampler": type(self).__name__,
            "seed": self.seed,
            "replacement": self.replacement,
            "num_samples": self.num_samples,
        }


class ReproducibleWeightedRandomSampler(_EpochSampler, WeightedRandomSampler):
    """Rows drawn by weight, depending on ``seed + epoch`` only.

    Parameters
    ----------
    weights
        The weight of each row; they need not sum to one.
    num_samples
        How many rows are drawn in an epoch.
    replacement
        Whether a row may be drawn twice in an epoch.
    seed
        The base seed.
    epoch
        The first epoch.
    **kwargs
        Passed to `torch.utils.data.WeightedRandomSampler`; no ``generator``.

    Raises
    ------
    ValueError
        If a ``generator`` is given.

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
        _check_no_generator(type(self).__name__, kwargs)
        WeightedRandomSampler.__init__(self, weights, num_samples, replacement, **kwargs)
        self._set_seed(seed, epoch)

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


class BalancingDataSampler(ReproducibleWeightedRandomSampler):
    """Rows drawn so that each value of one key occurs about equally often.

    Parameters
    ----------
    dataset
        A `DynamicItemDataset`.
    key
        The key whose values are balanced.
    num_samples
        How many rows are drawn in an epoch; default: as many as the dataset has.
    replacement
        Whether a row may be drawn twice in an epoch.
    seed
        The base seed.
    epoch
        The first epoch.
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


def _check_no_generator(name: str, kwargs: dict[str, Any]) -> None:
    if "generator" in kwargs:
        raise ValueError(
            f"{name} seeds a generator of its own, got generator={kwargs['generator']!r}: "
            "pass seed= instead"
        )
