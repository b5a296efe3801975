"""Datasets, batches, samplers and loaders that resume at any batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain_dist.lazy import check_same_version, load_on_first_use

if TYPE_CHECKING:
    from brain_data.batch.batch_size import BatchsizeGuesser
    from brain_data.batch.collate import batch_pad_right, undo_padding
    from brain_data.batch.padded_batch import PaddedBatch, PaddedData
    from brain_data.dataset.cached_item import CachedDynamicItem
    from brain_data.dataset.dynamic_item_dataset import (
        DynamicItemDataset,
        FilteredSortedDynamicItemDataset,
        add_dynamic_item,
        set_output_keys,
    )
    from brain_data.dataset.items import (
        DynamicItem,
        GeneratorDynamicItem,
        StaticItem,
        provides,
        takes,
    )
    from brain_data.dataset.manifest_csv import load_data_csv
    from brain_data.dataset.manifest_json import load_data_json
    from brain_data.dataset.pipeline import DataPipeline
    from brain_data.errors import (
        CircularDependencyError,
        DataItemError,
        ManifestError,
        ManifestKeyError,
        PaddingError,
        ResumeError,
        UnknownKeyError,
    )
    from brain_data.experiment.directory import ExperimentDirectory, create_experiment_directory
    from brain_data.experiment.environment import get_environment_description
    from brain_data.experiment.logging import TqdmCompatibleStreamHandler
    from brain_data.loader.loader import SaveableDataLoader
    from brain_data.loader.looped import LoopedLoader
    from brain_data.loader.make import (
        distributed_loader_specifics,
        make_dataloader,
        make_sampler,
    )
    from brain_data.loader.resumable import ResumableLoader
    from brain_data.order.concatenation import ConcatDatasetBatchSampler
    from brain_data.order.distributed import DistributedSamplerWrapper
    from brain_data.order.dynamic_batches import DynamicBatchSampler
    from brain_data.order.keyed import KeyedRandomSampler
    from brain_data.order.samplers import (
        BalancingDataSampler,
        ReproducibleRandomSampler,
        ReproducibleWeightedRandomSampler,
    )

__all__ = [
    "BalancingDataSampler",
    "BatchsizeGuesser",
    "CachedDynamicItem",
    "CircularDependencyError",
    "ConcatDatasetBatchSampler",
    "DataItemError",
    "DataPipeline",
    "DistributedSamplerWrapper",
    "DynamicBatchSampler",
    "DynamicItem",
    "DynamicItemDataset",
    "ExperimentDirectory",
    "FilteredSortedDynamicItemDataset",
    "GeneratorDynamicItem",
    "KeyedRandomSampler",
    "LoopedLoader",
    "ManifestError",
    "ManifestKeyError",
    "PaddedBatch",
    "PaddedData",
    "PaddingError",
    "ReproducibleRandomSampler",
    "ReproducibleWeightedRandomSampler",
    "ResumableLoader",
    "ResumeError",
    "SaveableDataLoader",
    "StaticItem",
    "TqdmCompatibleStreamHandler",
    "UnknownKeyError",
    "add_dynamic_item",
    "batch_pad_right",
    "create_experiment_directory",
    "distributed_loader_specifics",
    "get_environment_description",
    "load_data_csv",
    "load_data_json",
    "make_dataloader",
    "make_sampler",
    "provides",
    "set_output_keys",
    "takes",
    "undo_padding",
]

__version__ = "0.1.0"
check_same_version(__name__, __version__)

# The module of each public name; a module is imported when a name of it is first used.
_HOMES = {
    ".batch.batch_size": "BatchsizeGuesser",
    ".batch.collate": "batch_pad_right undo_padding",
    ".batch.padded_batch": "PaddedBatch PaddedData",
    ".dataset.cached_item": "CachedDynamicItem",
    ".dataset.dynamic_item_dataset": "DynamicItemDataset FilteredSortedDynamicItemDataset "
    "add_dynamic_item set_output_keys",
    ".dataset.items": "DynamicItem GeneratorDynamicItem StaticItem provides takes",
    ".dataset.manifest_csv": "load_data_csv",
    ".dataset.manifest_json": "load_data_json",
    ".dataset.pipeline": "DataPipeline",
    ".errors": "CircularDependencyError DataItemError ManifestError "
    "ManifestKeyError PaddingError ResumeError UnknownKeyError",
    ".experiment.directory": "ExperimentDirectory create_experiment_directory",
    ".experiment.environment": "get_environment_description",
    ".experiment.logging": "TqdmCompatibleStreamHandler",
    ".loader.loader": "SaveableDataLoader",
    ".loader.looped": "LoopedLoader",
    ".loader.make": "distributed_loader_specifics make_dataloader make_sampler",
    ".loader.resumable": "ResumableLoader",
    ".order.concatenation": "ConcatDatasetBatchSampler",
    ".order.distributed": "DistributedSamplerWrapper",
    ".order.dynamic_batches": "DynamicBatchSampler",
    ".order.keyed": "KeyedRandomSampler",
    ".order.samplers": "BalancingDataSampler ReproducibleRandomSampler "
    "ReproducibleWeightedRandomSampler",
}
__getattr__, __dir__ = load_on_first_use(__name__, _HOMES)
