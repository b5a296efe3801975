"""Brain: a PyTorch training loop behind two methods."""

from __future__ import annotations

from brain_data import create_experiment_directory

from ._borders import TrainingStopped
from ._brain import Brain
from ._epochs import EpochCounter, EpochCounterWithStopper
from ._options import RunOptions, parse_arguments
from ._seed import seed_everything
from ._stage import Stage
from ._train_logger import FileTrainLogger, TensorboardLogger, TrainLogger, WandBLogger

__all__ = [
    "Brain",
    "EpochCounter",
    "EpochCounterWithStopper",
    "FileTrainLogger",
    "RunOptions",
    "Stage",
    "TensorboardLogger",
    "TrainLogger",
    "TrainingStopped",
    "WandBLogger",
    "create_experiment_directory",
    "parse_arguments",
    "seed_everything",
]

__version__ = "0.1.0"
