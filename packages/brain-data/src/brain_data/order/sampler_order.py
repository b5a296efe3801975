"""The order of an epoch and the settings that decide it, for any sampler."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, SequentialSampler

from brain_data.order.plan import as_order


def order_of(sampler: Any, limit: int | None = None, *, seed: int | None = None) -> Any:
    """Return the rows of a sampler's epoch: its own `order`, else what iterating it yields.

    Parameters
    ----------
    sampler
        Any sampler.
    limit
        Return at most so many rows.
    seed
        The seed that torch's `RandomSampler` has drawn for the epoch, see `SamplerChain.draw_seed`.
    """
    if hasattr(sampler, "order"):
        order = sampler.order()
        return order if limit is None else order[:limit]
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
        batching = {"batch_size": sampler.batch_size, "drop_last": sampler.drop_last}
        return settings_of(sampler.sampler) | batching
    settings = {"sampler": type(sampler).__name__}
    if isinstance(sampler, DistributedSampler):  # torch's own, which yields one rank's share
        names = ("num_replicas", "shuffle", "seed", "drop_last", "total_size")
        return settings | {name: getattr(sampler, name) for name in names}
    with contextlib.suppress(TypeError):  # no length
        settings["length"] = len(sampler)
    return settings
