"""Which loader a stage gets."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, IterableDataset

from brain_data import (
    LoopedLoader,
    ReproducibleRandomSampler,
    distributed_loader_specifics,
    make_dataloader,
)
from brain_dist import get_rank, get_world_size

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["is_loader", "make_stage_loader", "needs_replay"]

_DEFAULT_SEED = 563375142  # SpeechBrain's, so that a moved recipe sees its data in the same order


def is_loader(data: Any) -> bool:
    """Whether ``data`` gives batches by itself, as opposed to being a Dataset to load from."""
    if isinstance(data, (DataLoader, LoopedLoader)):
        return True
    is_dataset = isinstance(data, IterableDataset) or hasattr(data, "__getitem__")
    return hasattr(data, "__iter__") and not is_dataset


def make_stage_loader(
    dataset: Any, loader_kwargs: Mapping[str, Any], *, for_training: bool
) -> tuple[Any, Any]:
    """Make a loader; in training, shuffled reproducibly and dealt out to the ranks.

    Returns
    -------
    loader : DataLoader
        The loader.
    sampler : object or None
        What has to be told the epoch.
    """
    kwargs = dict(loader_kwargs)
    if not for_training:
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


def needs_replay(loader: Any) -> bool:
    """Whether a loader can only be brought to a position by reading up to it."""
    return not hasattr(loader, "load_state_dict")


def _order_seed() -> int:
    return int(os.environ.get("SB_GLOBAL_SEED", _DEFAULT_SEED))
