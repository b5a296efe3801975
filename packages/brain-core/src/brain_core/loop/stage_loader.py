"""The loader of a stage, and each rank's shard of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from brain_data import (
    LoopedLoader,
    ResumableLoader,
    SaveableDataLoader,
    distributed_loader_specifics,
    make_dataloader,
    make_sampler,
)
from brain_dist import gather_objects, get_rank, get_world_size, shard_items

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from brain_core.options.run_options import RunOptions

__all__ = [
    "check_not_empty",
    "common_batch_count",
    "is_loader",
    "length_of",
    "make_resumable",
    "make_stage_loader",
    "needs_reading_again",
    "shard_evaluation_batches",
]


def is_loader(data: Any) -> bool:
    """Return whether ``data`` is a loader of batches, not a Dataset."""
    if isinstance(data, (DataLoader, LoopedLoader)):
        return True
    is_dataset = isinstance(data, IterableDataset) or hasattr(data, "__getitem__")
    return hasattr(data, "__iter__") and not is_dataset


def make_stage_loader(
    dataset: Any,
    loader_kwargs: Mapping[str, Any],
    *,
    device: torch.device | str,
    for_training: bool,
    shard_evaluation: bool = False,
) -> tuple[Any, Any]:
    """Make a loader; in training, shuffled reproducibly and sharded over the ranks.

    A sharded evaluation repeats no batch to make the shards equal. Batches in pinned memory are
    copied to ``device`` ahead of time, if that is a GPU and the arguments name no device.

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
    if kwargs.get("pin_memory") and _is_gpu(device):
        kwargs.setdefault("device", device)
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
        kwargs["sampler"] = make_sampler(dataset, kwargs.pop("shuffle"))
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

    A loader from ``make_stage_loader(..., shard_evaluation=True)`` loads only this shard. Any other
    loader loads all batches, and those of other ranks are dropped.
    """
    samplers = (getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None))
    is_sharded = any(isinstance(sampler, _Shard) for sampler in samplers)
    return loader if is_sharded else _Shard(loader)


def check_not_empty(loader: Any, name: str) -> None:
    """Check that a loader gives a batch on every rank, where it has a length; every rank calls it.

    Raises
    ------
    ValueError
        On every rank, if one of them has none.
    """
    lengths = gather_objects(length_of(loader))
    if 0 not in lengths:
        return
    rows = length_of(getattr(loader, "dataset", None))
    size = "no rows" if rows is None else f"{rows} rows"
    batch_size = getattr(getattr(loader, "batch_sampler", loader), "batch_size", None)
    of = "" if batch_size is None else f" in batches of {batch_size}"
    raise ValueError(
        f"{name} must give at least one batch on every rank, got {size}{of} and "
        f"{', '.join(map(str, lengths))} batches on {len(lengths)} rank(s). Give more rows, a "
        "smaller batch_size, or drop_last=False."
    )


def common_batch_count(loader: Any) -> float:
    """Return the number of batches that every rank is certain to have; every rank calls it."""
    if get_world_size() == 1:
        return math.inf
    return min(gather_objects(length_of(loader) or 0))


def length_of(data: Any) -> int | None:
    """Return the length of a loader or a dataset, None where it has none."""
    try:
        length: int = len(data)
    except (NotImplementedError, TypeError):
        return None
    return length


def make_resumable(
    loader: Any,
    options: RunOptions,
    *,
    device: torch.device | str,
    saved: Collection[Any],
    is_saved: bool,
) -> Any:
    """Return a training loader whose position can be saved, and that shards its batches.

    Loaders of brain_data, and one that the recipe saves itself, are returned as they are.

    Parameters
    ----------
    loader : iterable
        What the recipe gave to `fit`.
    options : RunOptions
        ``shard_loaders``, ``elastic`` and ``resume_anyway`` are used.
    device : torch.device or str
        If it is a GPU, batches in pinned memory are copied to it ahead of time.
    saved : collection of object
        What the recipe added to the checkpointer.
    is_saved : bool
        Whether the run is saved.
    """
    is_ours = isinstance(loader, (SaveableDataLoader, LoopedLoader, ResumableLoader))
    if is_ours or any(loader is obj for obj in saved):
        return loader
    if not (is_saved or get_world_size() > 1 or isinstance(loader, DataLoader)):
        return loader
    return ResumableLoader(
        loader,
        shard=options.shard_loaders,
        elastic=options.elastic,
        resume_anyway=options.resume_anyway,
        device=device if getattr(loader, "pin_memory", False) and _is_gpu(device) else None,
    )


def needs_reading_again(loader: Any) -> bool:
    """Return whether a loader reaches a position only by reading all batches before it."""
    return not (hasattr(loader, "load_state_dict") and getattr(loader, "holds_position", True))


def _is_gpu(device: torch.device | str) -> bool:
    return torch.device(device).type == "cuda"


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
