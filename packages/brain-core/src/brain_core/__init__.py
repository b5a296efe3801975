"""Brain: a PyTorch training loop behind two methods."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    "brain_core._borders": "TrainingStopped",
    "brain_core._brain": "Brain",
    "brain_core._epochs": "EpochCounter EpochCounterWithStopper",
    "brain_core._options": "RunOptions parse_arguments",
    "brain_core._seed": "seed_everything",
    "brain_core._stage": "Stage",
    "brain_core._train_logger": "FileTrainLogger TensorboardLogger TrainLogger WandBLogger",
    "brain_data": "create_experiment_directory",
}
_home = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _home:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_home[name]), name)
    globals()[name] = value  # the next use finds it here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
