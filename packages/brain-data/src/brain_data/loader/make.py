"""Loaders with SpeechBrain's defaults, on one rank and on several."""

from __future__ import annotations

import logging
from typing import Any

from torch.utils.data import BatchSampler, IterableDataset, SequentialSampler

from brain_data.batch.padded_batch import PaddedBatch
from brain_data.loader.loader import SaveableDataLoader
from brain_data.loader.looped import LoopedLoader
from brain_data.order.distributed import DistributedSamplerWrapper
from brain_data.order.keyed import KeyedRandomSampler
from brain_data.order.samplers import ReproducibleRandomSampler
from brain_data.order.seeding import global_seed

logger = logging.getLogger(__name__)


def make_dataloader(
    dataset: Any, looped_nominal_epoch: int | None = None, **loader_kwargs: Any
) -> Any:
    """Return a loader with SpeechBrain's defaults.

    Parameters
    ----------
    dataset
        Any dataset. A `DynamicItemDataset` is collated by `PaddedBatch` by default.
    looped_nominal_epoch
        Iterate the loader repeatedly, with this number of batches in an epoch.
    **loader_kwargs
        As for `SaveableDataLoader`. ``shuffle=True`` means a `ReproducibleRandomSampler`, and
        ``shuffle="keyed"`` a `KeyedRandomSampler`, whose memory and first batch do not depend on
        the number of rows. The seed is SB_GLOBAL_SEED if it is set.

    Returns
    -------
    SaveableDataLoader or LoopedLoader
        The latter if ``looped_nominal_epoch`` is given.

    Raises
    ------
    ValueError
        If ``shuffle`` is given with a sampler or a batch sampler, or is another string.
    """
    if "collate_fn" not in loader_kwargs and _is_dynamic_item_dataset(dataset):
        loader_kwargs["collate_fn"] = PaddedBatch
    if loader_kwargs.get("shuffle") and not isinstance(dataset, IterableDataset):
        _check_one_order(loader_kwargs)
        loader_kwargs["sampler"] = make_sampler(dataset, loader_kwargs.pop("shuffle"))
    if _is_webdataset(dataset):
        loader_kwargs.setdefault("batch_size", None)
    loader: Any = SaveableDataLoader(dataset, **loader_kwargs)
    if looped_nominal_epoch is not None:
        loader = LoopedLoader(loader, looped_nominal_epoch)
    return loader


def make_sampler(dataset: Any, shuffle: bool | str = True, seed: int | None = None) -> Any:
    """Return the sampler that a loader's ``shuffle`` stands for.

    Parameters
    ----------
    dataset
        What is loaded; only its length is read.
    shuffle
        True: torch's ``randperm`` of all rows. ``"keyed"``: a keyed permutation, computed where it
        is used, for sets of any size. False: in order.
    seed
        The seed of the order; default: SB_GLOBAL_SEED, or SpeechBrain's.

    Returns
    -------
    ReproducibleRandomSampler, KeyedRandomSampler or torch.utils.data.SequentialSampler
        The sampler.

    Raises
    ------
    ValueError
        If ``shuffle`` is another string.
    """
    if not shuffle:
        return SequentialSampler(dataset)
    if isinstance(shuffle, str) and shuffle != "keyed":
        raise ValueError(
            f'shuffle must be True, False or "keyed", got {shuffle!r}: use one of these'
        )
    sampler = KeyedRandomSampler if shuffle == "keyed" else ReproducibleRandomSampler
    return sampler(dataset, seed=global_seed() if seed is None else seed)


def distributed_loader_specifics(
    distributed_launch: bool, rank: int, dataset: Any, loader_kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Return a loader's arguments for one of several ranks.

    ``shuffle`` is used as given, the seed of the order is that of the run, and each rank is
    assigned whole batches.

    Parameters
    ----------
    distributed_launch
        Whether there are several ranks.
    rank
        This rank.
    dataset
        What is loaded.
    loader_kwargs
        The arguments as for one process; they are not edited.

    Returns
    -------
    dict
        The arguments with the sampler or the batch sampler in a `DistributedSamplerWrapper`.
    """
    kwargs = dict(loader_kwargs)
    if not distributed_launch:
        return kwargs
    if isinstance(dataset, IterableDataset):
        logger.warning(
            "An IterableDataset cannot be sharded among ranks: each rank reads all of it unless "
            "the dataset itself selects a part by its rank"
        )
        return kwargs
    if kwargs.get("shuffle"):
        _check_one_order(kwargs)
    shuffle = kwargs.pop("shuffle", False)
    batch_sampler = kwargs.get("batch_sampler")
    if batch_sampler is not None:
        kwargs["batch_sampler"] = _wrapped(batch_sampler, rank)
        return kwargs
    sampler = kwargs.get("sampler")
    if sampler is None:
        sampler = make_sampler(dataset, shuffle)
    if kwargs.get("batch_size", 1) is None:
        kwargs["sampler"] = _wrapped(sampler, rank)
        return kwargs
    kwargs.pop("sampler", None)
    drop_last = kwargs.pop("drop_last", False)
    batches = BatchSampler(sampler, kwargs.pop("batch_size", 1), drop_last)
    kwargs["batch_sampler"] = _wrapped(batches, rank, drop_last=drop_last)
    return kwargs


def _wrapped(sampler: Any, rank: int, *, drop_last: bool = False) -> DistributedSamplerWrapper:
    if isinstance(sampler, DistributedSamplerWrapper):
        return sampler
    return DistributedSamplerWrapper(sampler, rank=rank, drop_last=drop_last)


def _check_one_order(loader_kwargs: dict[str, Any]) -> None:
    for name in ("sampler", "batch_sampler"):
        if loader_kwargs.get(name) is not None:
            raise ValueError(
                f"shuffle={loader_kwargs['shuffle']!r} and a {name} exclude each other, got both "
                f"({name}={loader_kwargs[name]!r}): leave shuffle out, or let the {name} shuffle"
            )


def _is_dynamic_item_dataset(dataset: Any) -> bool:
    # By its attributes, not by its class: importing the module of the class takes time.
    return hasattr(dataset, "pipeline") and hasattr(dataset, "output_keys_as")


def _is_webdataset(dataset: Any) -> bool:
    names = {f"{base.__module__}.{base.__name__}" for base in type(dataset).__mro__}
    return any(name.startswith("webdataset.") for name in names)
