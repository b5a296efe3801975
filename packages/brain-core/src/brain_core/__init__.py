"""Brain: a PyTorch training loop behind two methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain_dist.lazy import load_on_first_use

if TYPE_CHECKING:
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

# Where each public name is; a module is imported when a name of it is first used.
_HOMES = {
    "._borders": "TrainingStopped",
    "._brain": "Brain",
    "._epochs": "EpochCounter EpochCounterWithStopper",
    "._options": "RunOptions parse_arguments",
    "._seed": "seed_everything",
    "._stage": "Stage",
    "._train_logger": "FileTrainLogger TensorboardLogger TrainLogger WandBLogger",
    "brain_data": "create_experiment_directory",
}
__getattr__, __dir__ = load_on_first_use(__name__, _HOMES)
