"""Parts of a training that need no subclass: callbacks, several loggers, and what they hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from brain_core import (
    EMA,
    CSVLogger,
    EarlyStopping,
    FileTrainLogger,
    GradNormMonitor,
    JSONLinesLogger,
    LoggerList,
    LRSchedule,
    ThroughputMonitor,
)
from chaos._journal import checksums

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from brain_core import Callback, TrainLogger
    from chaos._cases import Config

__all__ = [
    "LOG_FILES",
    "TRAIN_LOSS",
    "callbacks_of",
    "figures_of",
    "logger_of",
    "logs_in",
    "states_of",
]

LOG_FILES = _TEXT, _TABLE, _JSON_LINES = "log.txt", "log.csv", "log.jsonl"
TRAIN_LOSS = "train loss"  # that the recipe adds to the figures of the validation
_MEASURED_BY_TIME = {"samples_per_s", "data_wait"}


def callbacks_of(config: Config) -> list[Callback]:
    """Make the callbacks of a run; with FSDP2 without the EMA, which needs whole weights.

    Two kinds of schedules and of early stopping share the cases, so that there are not more.
    """
    if not config.callbacks:
        return []
    average = [EMA(0.9, warmup=True)] if config.parallel == "ddp" else []
    stopping = (
        EarlyStopping(patience=2)
        if config.workers
        else EarlyStopping(TRAIN_LOSS, patience=1, min_delta=0.11)
    )
    schedule = (
        LRSchedule(
            lambda optimizer: ReduceLROnPlateau(optimizer, factor=0.5, patience=0), per="epoch"
        )
        if config.loader == "plain"
        else LRSchedule(lambda step, total: min(1.0, (step + 1) / 5) * (1 - step / (total + 1)))
    )
    return [*average, stopping, schedule, GradNormMonitor(), ThroughputMonitor()]


def states_of(callbacks: Iterable[Callback]) -> dict[str, str]:
    """Return a text for each average, count and metric that callbacks hold."""
    facts: dict[str, str] = {}
    for callback in callbacks:
        if isinstance(callback, EMA):
            facts |= checksums("EMA", callback.state_dict())
        elif isinstance(callback, EarlyStopping):
            facts |= checksums("early stopping.best", callback.best)
            facts |= checksums("early stopping.waited", callback.waited)
        elif isinstance(callback, LRSchedule):
            facts |= checksums("schedule.done", callback.done)
    return facts


def figures_of(stats: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a pass, without those that depend on how fast it was."""
    return {name: value for name, value in stats.items() if name not in _MEASURED_BY_TIME}


def logger_of(config: Config, folder: Path) -> TrainLogger:
    """Make the text log, and with callbacks a table and JSON lines, too."""
    text = FileTrainLogger(folder / _TEXT)
    if not config.callbacks:
        return text
    return LoggerList(text, CSVLogger(folder / _TABLE), JSONLinesLogger(folder / _JSON_LINES))


def logs_in(folder: Path) -> dict[str, str]:
    """Return the rows of each log by the name of its file, and the first line of a table."""
    logs = {
        path.name: path.read_text(encoding="utf-8")
        for path in (folder / name for name in LOG_FILES)
        if path.exists()
    }
    if _TABLE in logs:
        logs["columns"], logs[_TABLE] = logs[_TABLE].split("\n", 1)
    return logs
