"""Datasets, batches, samplers and loaders that resume at any batch."""

from __future__ import annotations

from ._batch import BatchsizeGuesser, PaddedBatch, PaddedData
from ._collate import batch_pad_right, undo_padding
from ._dataset import (
    DynamicItemDataset,
    FilteredSortedDynamicItemDataset,
    add_dynamic_item,
    set_output_keys,
)
from ._dataset_errors import (
    CircularDependencyError,
    DataItemError,
    ManifestError,
    ManifestKeyError,
    PaddingError,
    UnknownKeyError,
)
from ._environment import get_environment_description
from ._experiment import ExperimentDirectory, create_experiment_directory
from ._experiment_logging import TqdmCompatibleStreamHandler
from ._items import (
    CachedDynamicItem,
    DynamicItem,
    GeneratorDynamicItem,
    StaticItem,
    provides,
    takes,
)
from ._loader import SaveableDataLoader
from ._loader_looped import LoopedLoader
from ._loader_make import distributed_loader_specifics, make_dataloader
from ._manifest import load_data_csv, load_data_json
from ._pipeline import DataPipeline
from ._samplers import (
    BalancingDataSampler,
    ConcatDatasetBatchSampler,
    ReproducibleRandomSampler,
    ReproducibleWeightedRandomSampler,
)
from ._samplers_distributed import DistributedSamplerWrapper
from ._samplers_dynamic import DynamicBatchSampler

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
