"""Brain: a PyTorch training loop behind two methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain_dist.lazy import check_same_version, load_on_first_use

if TYPE_CHECKING:
    from brain_core.brain import Brain
    from brain_core.epochs import EpochCounter, EpochCounterWithStopper
    from brain_core.loggers.base import TrainLogger
    from brain_core.loggers.tensorboard import TensorboardLogger
    from brain_core.loggers.text_file import FileTrainLogger
    from brain_core.loggers.wandb import WandBLogger
    from brain_core.options.run_options import RunOptions, parse_arguments
    from brain_core.options.seed import seed_everything
    from brain_core.stage import Stage
    from brain_core.stopping.step_boundary import TrainingStopped
    from brain_data import create_experiment_directory

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
check_same_version(__name__, __version__)

# The module of each public name, which is imported when the name is first used.
_HOMES = {
    ".brain": "Brain",
    ".epochs": "EpochCounter EpochCounterWithStopper",
    ".loggers.base": "TrainLogger",
    ".loggers.tensorboard": "TensorboardLogger",
    ".loggers.text_file": "FileTrainLogger",
    ".loggers.wandb": "WandBLogger",
    ".options.run_options": "RunOptions parse_arguments",
    ".options.seed": "seed_everything",
    ".stage": "Stage",
    ".stopping.step_boundary": "TrainingStopped",
    "brain_data": "create_experiment_directory",
}
__getattr__, __dir__ = load_on_first_use(__name__, _HOMES)
