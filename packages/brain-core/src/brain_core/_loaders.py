"""Which loader a stage gets."""

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
from brain_dist import deal, gather_objects, get_rank, get_world_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["is_loader", "make_stage_loader", "needs_replay", "share_of"]

_DEFAULT_SEED = 563375142  # SpeechBrain's, so that a moved recipe sees its data in the same order


def is_loader(data: Any) -> bool:
    """Whether ``data`` gives batches by itself, as opposed to being a Dataset to load from."""
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
    """Make a loader; in training, shuffled reproducibly and dealt out to the ranks.

    For an evaluation that is dealt out, too, nothing is repeated to make the shares equal.

    Returns
    -------
    loader : DataLoader
        The loader.
    sampler : object or None
        What has to be told the epoch.
    """
    kwargs = dict(loader_kwargs)
    if not for_training:
        if shard_evaluation and get_world_size() > 1:
            kwargs = _deal_indices(dataset, kwargs)
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


def share_of(loader: Any) -> Any:
    """Return this rank's share of an evaluation's batches.

    A loader that `make_stage_loader` made for it loads only those already. From any other one all
    are taken, and those of other ranks let go.
    """
    samplers = (getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None))
    is_dealt = any(isinstance(sampler, _Share) for sampler in samplers)
    return loader if is_dealt else _Share(loader)


def batches_of_every_rank(loader: Any) -> float:
    """Return how many batches every rank sees for certain; on several, each has to ask."""
    if get_world_size() == 1:
        return math.inf
    return min(gather_objects(len(loader) if _has_length(loader) else 0))


def needs_replay(loader: Any) -> bool:
    """Whether a loader can only be brought to a position by reading up to it."""
    return not hasattr(loader, "load_state_dict")


def _order_seed() -> int:
    return int(os.environ.get("SB_GLOBAL_SEED", _DEFAULT_SEED))


def _has_length(loader: Any) -> bool:
    try:
        len(loader)
    except (NotImplementedError, TypeError):
        return False
    return True


class _Share:
    """Every so-manieth of some items that are the same on all ranks."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        return deal(self._items)

    def __len__(self) -> int:
        return len(range(get_rank(), len(self._items), get_world_size()))


def _deal_indices(dataset: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Let a loader's sampler give this rank's batches only."""
    if isinstance(dataset, IterableDataset) or kwargs.get("shuffle"):
        return kwargs
    if kwargs.get("batch_sampler") is not None:
        return {**kwargs, "batch_sampler": _Share(kwargs["batch_sampler"])}
    kwargs = dict(kwargs)
    sampler = kwargs.pop("sampler", None) or SequentialSampler(dataset)
    batch_size = kwargs.pop("batch_size", 1)
    if batch_size is None:
        return {**kwargs, "batch_size": None, "sampler": _Share(sampler)}
    batches = BatchSampler(sampler, batch_size, kwargs.pop("drop_last", False))
    return {**kwargs, "batch_sampler": _Share(batches)}
