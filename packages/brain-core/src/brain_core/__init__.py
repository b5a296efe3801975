"""Brain: a PyTorch training loop behind two methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain_dist.lazy import check_same_version, load_on_first_use

if TYPE_CHECKING:
    from brain_core.brain import Brain
    from brain_core.callbacks.base import Callback
    from brain_core.callbacks.early_stopping import EarlyStopping
    from brain_core.callbacks.ema import EMA
    from brain_core.callbacks.lr_schedule import LRSchedule
    from brain_core.callbacks.monitors import GradNormMonitor, ThroughputMonitor
    from brain_core.callbacks.run_report import Report
    from brain_core.epochs import EpochCounter, EpochCounterWithStopper
    from brain_core.loggers.base import TrainLogger
    from brain_core.loggers.csv_file import CSVLogger
    from brain_core.loggers.json_lines import JSONLinesLogger
    from brain_core.loggers.mlflow import MLflowLogger
    from brain_core.loggers.several import LoggerList
    from brain_core.loggers.tensorboard import TensorboardLogger
    from brain_core.loggers.text_file import FileTrainLogger
    from brain_core.loggers.wandb import WandBLogger
    from brain_core.options.run_options import RunOptions, parse_arguments
    from brain_core.options.seed import seed_everything
    from brain_core.stage import Stage
    from brain_core.stopping.step_boundary import TrainingStopped
    from brain_data import create_experiment_directory

__all__ = [
    "EMA",
    "Brain",
    "CSVLogger",
    "Callback",
    "EarlyStopping",
    "EpochCounter",
    "EpochCounterWithStopper",
    "FileTrainLogger",
    "GradNormMonitor",
    "JSONLinesLogger",
    "LRSchedule",
    "LoggerList",
    "MLflowLogger",
    "Report",
    "RunOptions",
    "Stage",
    "TensorboardLogger",
    "ThroughputMonitor",
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
    ".callbacks.base": "Callback",
    ".callbacks.early_stopping": "EarlyStopping",
    ".callbacks.ema": "EMA",
    ".callbacks.lr_schedule": "LRSchedule",
    ".callbacks.monitors": "GradNormMonitor ThroughputMonitor",
    ".callbacks.run_report": "Report",
    ".epochs": "EpochCounter EpochCounterWithStopper",
    ".loggers.base": "TrainLogger",
    ".loggers.csv_file": "CSVLogger",
    ".loggers.json_lines": "JSONLinesLogger",
    ".loggers.mlflow": "MLflowLogger",
    ".loggers.several": "LoggerList",
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
