"""The loader of a stage, and each rank's share of it."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from brain_data import (
    LoopedLoader,
    ReproducibleRandomSampler,
    distributed_loader_specifics,
    make_dataloader,
)
from brain_dist import gather_objects, get_rank, get_world_size, shard_items

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "common_batch_count",
    "is_loader",
    "make_stage_loader",
    "needs_reading_again",
    "shard_evaluation_batches",
]

_DEFAULT_SEED = 563375142  # SpeechBrain's, so that a moved recipe sees its data in the same order


def is_loader(data: Any) -> bool:
    """Return whether ``data`` gives batches itself, as opposed to being a Dataset."""
    if isinstance(data, (DataLoader, LoopedLoader)):
        return True
    is_dataset = isinstance(data, IterableDataset) or hasattr(data, "__getitem__")
    return hasattr(data, "__iter__") and not is_dataset


def make_stage_loader(
    dataset: Any,
    loader_kwargs: Mapping[str, Any],
    *,
    for_training: bool,
    shard_evaluation: bool = False,
) -> tuple[Any, Any]:
    """Make a loader; in training, shuffled reproducibly and sharded over the ranks.

    A sharded evaluation repeats no batch to make the shards equal.

    Returns
    -------
    loader : DataLoader
        The loader.
    sampler : object or None
        The sampler whose ``set_epoch`` is to be called before each epoch.

    Raises
    ------
    ValueError
        If both ``shuffle`` and a sampler are given.
    """
    kwargs = dict(loader_kwargs)
    if not for_training:
        if shard_evaluation and get_world_size() > 1:
            kwargs = _shard_indices(dataset, kwargs)
        return make_dataloader(dataset, **kwargs), None
    if kwargs.get("shuffle") and not isinstance(dataset, IterableDataset):
        if kwargs.get("sampler") is not None:
            raise ValueError(
                "A loader takes either shuffle=True or a sampler, got both. Leave one out of the "
                f"loader's arguments (sampler: {kwargs['sampler']!r})."
            )
        del kwargs["shuffle"]
        kwargs["sampler"] = ReproducibleRandomSampler(dataset, seed=_order_seed())
    if get_world_size() > 1:
        kwargs = dict(
            distributed_loader_specifics(
                distributed_launch=True, rank=get_rank(), dataset=dataset, loader_kwargs=kwargs
            )
        )
    sampler = kwargs.get("batch_sampler") or kwargs.get("sampler")
    return make_dataloader(dataset, **kwargs), sampler if hasattr(sampler, "set_epoch") else None


def shard_evaluation_batches(loader: Any) -> Any:
    """Return this rank's shard of an evaluation's batches.

    A loader that `make_stage_loader` made for it loads only those already. Any other loader loads
    all batches, and those of other ranks are dropped.
    """
    samplers = (getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None))
    is_sharded = any(isinstance(sampler, _Shard) for sampler in samplers)
    return loader if is_sharded else _Shard(loader)


def common_batch_count(loader: Any) -> float:
    """Return the number of batches that every rank is certain to have; every rank calls it."""
    if get_world_size() == 1:
        return math.inf
    return min(gather_objects(len(loader) if _has_length(loader) else 0))


def needs_reading_again(loader: Any) -> bool:
    """Return whether a loader reaches a position only by reading all batches before it."""
    return not hasattr(loader, "load_state_dict")


def _order_seed() -> int:
    return int(os.environ.get("SB_GLOBAL_SEED", _DEFAULT_SEED))


def _has_length(loader: Any) -> bool:
    try:
        len(loader)
    except (NotImplementedError, TypeError):
        return False
    return True


class _Shard:
    """One rank's shard of items that are the same on all ranks."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        return shard_items(self._items)

    def __len__(self) -> int:
        return len(range(get_rank(), len(self._items), get_world_size()))


def _shard_indices(dataset: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a loader's arguments with a sampler that gives only this rank's batches."""
    if isinstance(dataset, IterableDataset) or kwargs.get("shuffle"):
        return kwargs
    if kwargs.get("batch_sampler") is not None:
        return {**kwargs, "batch_sampler": _Shard(kwargs["batch_sampler"])}
    kwargs = dict(kwargs)
    sampler = kwargs.pop("sampler", None) or SequentialSampler(dataset)
    batch_size = kwargs.pop("batch_size", 1)
    if batch_size is None:
        return {**kwargs, "batch_size": None, "sampler": _Shard(sampler)}
    batches = BatchSampler(sampler, batch_size, kwargs.pop("drop_last", False))
    return {**kwargs, "batch_sampler": _Shard(batches)}
