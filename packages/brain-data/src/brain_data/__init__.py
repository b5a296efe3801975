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
from ._manifest import load_data_csv, load_data_json
from ._pipeline import DataPipeline

__all__ = [
    "BatchsizeGuesser",
    "CachedDynamicItem",
    "CircularDependencyError",
    "DataItemError",
    "DataPipeline",
    "DynamicItem",
    "DynamicItemDataset",
    "ExperimentDirectory",
    "FilteredSortedDynamicItemDataset",
    "GeneratorDynamicItem",
    "ManifestError",
    "ManifestKeyError",
    "PaddedBatch",
    "PaddedData",
    "PaddingError",
    "StaticItem",
    "TqdmCompatibleStreamHandler",
    "UnknownKeyError",
    "add_dynamic_item",
    "batch_pad_right",
    "create_experiment_directory",
    "get_environment_description",
    "load_data_csv",
    "load_data_json",
    "provides",
    "set_output_keys",
    "takes",
    "undo_padding",
]

__version__ = "0.1.0"
