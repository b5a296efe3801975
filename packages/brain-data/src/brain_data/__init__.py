"""Datasets, batches, samplers and loaders that resume at any batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain_dist.lazy import load_on_first_use

if TYPE_CHECKING:
    from brain_data._batch import BatchsizeGuesser, PaddedBatch, PaddedData
    from brain_data._collate import batch_pad_right, undo_padding
    from brain_data._dataset import (
        DynamicItemDataset,
        FilteredSortedDynamicItemDataset,
        add_dynamic_item,
        set_output_keys,
    )
    from brain_data._dataset_errors import (
        CircularDependencyError,
        DataItemError,
        ManifestError,
        ManifestKeyError,
        PaddingError,
        UnknownKeyError,
    )
    from brain_data._environment import get_environment_description
    from brain_data._experiment import ExperimentDirectory, create_experiment_directory
    from brain_data._experiment_logging import TqdmCompatibleStreamHandler
    from brain_data._items import (
        CachedDynamicItem,
        DynamicItem,
        GeneratorDynamicItem,
        StaticItem,
        provides,
        takes,
    )
    from brain_data._loader import SaveableDataLoader
    from brain_data._loader_looped import LoopedLoader
    from brain_data._loader_make import distributed_loader_specifics, make_dataloader
    from brain_data._manifest import load_data_csv, load_data_json
    from brain_data._pipeline import DataPipeline
    from brain_data._samplers import (
        BalancingDataSampler,
        ConcatDatasetBatchSampler,
        ReproducibleRandomSampler,
        ReproducibleWeightedRandomSampler,
    )
    from brain_data._samplers_distributed import DistributedSamplerWrapper
    from brain_data._samplers_dynamic import DynamicBatchSampler

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
    "LoopedLoader",
    "ManifestError",
    "ManifestKeyError",
    "PaddedBatch",
    "PaddedData",
    "PaddingError",
    "ReproducibleRandomSampler",
    "ReproducibleWeightedRandomSampler",
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
    "provides",
    "set_output_keys",
    "takes",
    "undo_padding",
]

__version__ = "0.1.0"

# Where each public name is; a module is imported when a name of it is first used.
_HOMES = {
    "._batch": "BatchsizeGuesser PaddedBatch PaddedData",
    "._collate": "batch_pad_right undo_padding",
    "._dataset": "DynamicItemDataset FilteredSortedDynamicItemDataset add_dynamic_item "
    "set_output_keys",
    "._dataset_errors": "CircularDependencyError DataItemError ManifestError ManifestKeyError "
    "PaddingError UnknownKeyError",
    "._environment": "get_environment_description",
    "._experiment": "ExperimentDirectory create_experiment_directory",
    "._experiment_logging": "TqdmCompatibleStreamHandler",
    "._items": "CachedDynamicItem DynamicItem GeneratorDynamicItem StaticItem provides takes",
    "._loader": "SaveableDataLoader",
    "._loader_looped": "LoopedLoader",
    "._loader_make": "distributed_loader_specifics make_dataloader",
    "._manifest": "load_data_csv load_data_json",
    "._pipeline": "DataPipeline",
    "._samplers": "BalancingDataSampler ConcatDatasetBatchSampler ReproducibleRandomSampler "
    "ReproducibleWeightedRandomSampler",
    "._samplers_distributed": "DistributedSamplerWrapper",
    "._samplers_dynamic": "DynamicBatchSampler",
}
__getattr__, __dir__ = load_on_first_use(__name__, _HOMES)
