"""Logging of an experiment, which can be restored to what it was before."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler  # not subscriptable before Python 3.11

_FILE_FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"
_CONSOLE_FORMAT = "%(name)s - %(message)s"

LogConfig = str | os.PathLike[str] | Mapping[str, Any] | None


class TqdmCompatibleStreamHandler(_StreamHandler):
    """A console handler that writes its lines above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record above the progress bars."""
        try:
            from tqdm import tqdm

            tqdm.write(self.format(record), file=self.stream, end=self.terminator)
            self.flush()
        except RecursionError:
            raise
        except Exception:  # noqa: BLE001 - as the standard library's handlers
            self.handleError(record)


class ExperimentLogging:
    """Sets handlers of the root logger and the exception hook, and restores the former ones.

    Parameters
    ----------
    log_file : Path
        The log of this rank. Another rank than 0 creates it only for an error.
    config : dict or None
        A dictionary for ``logging.config``; its ``file_handler`` gets `log_file`. None: level INFO
        to the file and, unless there is a console handler already, to the console.
    is_main_process : bool
        Whether this is rank 0.
    """

    def __init__(
        self, log_file: Path, config: dict[str, Any] | None, is_main_process: bool
    ) -> None:
        self._root = logging.getLogger()
        self._handlers = list(self._root.handlers)
        self._level = self._root.level
        self._hook = sys.excepthook
        self._file: logging.Handler
        try:
            if not is_main_process:
                self._file = _file_handler(log_file, logging.ERROR)
                self._root.addHandler(self._file)
            elif config is None:
                self._file = self._add_default_handlers(log_file)
            else:
                self._file = self._apply_config(log_file, config)
        except BaseException:
            self._restore_handlers()
            raise
        self._installed = self._log_exception
        sys.excepthook = self._installed

    def restore(self) -> None:
        """Restore the exception hook, the handlers and the level; close handlers of this object."""
        # A hook that was set later is not removed; it may call this one, which then logs nothing.
        if sys.excepthook == self._installed:
            sys.excepthook = self._hook
        self._restore_handlers()

    def _add_default_handlers(self, log_file: Path) -> logging.Handler:
        if not any(isinstance(handler, logging.StreamHandler) for handler in self._handlers):
            console = TqdmCompatibleStreamHandler(sys.stdout)
            console.setLevel(logging.INFO)
            console.setFormatter(logging.Formatter(_CONSOLE_FORMAT))
            self._root.addHandler(console)
        file = _file_handler(log_file, logging.INFO, delay=False)
        self._root.addHandler(file)
        if self._root.getEffectiveLevel() > logging.INFO:
            self._root.setLevel(logging.INFO)
        return file

    def _apply_config(self, log_file: Path, settings: dict[str, Any]) -> logging.Handler:
        handlers = settings.setdefault("handlers", {})
        if "file_handler" in handlers:
            handlers["file_handler"]["filename"] = str(log_file)
        settings.setdefault("version", 1)
        # Other loggers of the user's are not disabled.
        settings.setdefault("disable_existing_loggers", False)
        from logging.config import dictConfig

        dictConfig(settings)
        for handler in self._root.handlers:
            if isinstance(handler, logging.FileHandler) and handler.baseFilename == str(log_file):
                return handler
        file = _file_handler(log_file, logging.INFO, delay=False)
        self._root.addHandler(file)
        return file

    def _restore_handlers(self) -> None:
        for handler in list(self._root.handlers):
            self._root.removeHandler(handler)
            if handler not in self._handlers:
                handler.close()
        for handler in self._handlers:
            self._root.addHandler(handler)
        self._root.setLevel(self._level)

    def _log_exception(
        self,
        kind: type[BaseException],
        error: BaseException,
        trace: TracebackType | None,
    ) -> None:
        # To the file only: the former hook prints it on the console.
        try:
            record = logging.getLogger("brain_data.experiment").makeRecord(
                "brain_data.experiment",
                logging.ERROR,
                __file__,
                0,
                "Exception:",
                (),
                (kind, error, trace),
            )
            if self._file in self._root.handlers:
                self._file.handle(record)
        finally:
            self._hook(kind, error, trace)


def _file_handler(path: Path, level: int, delay: bool = True) -> logging.FileHandler:
    handler = logging.FileHandler(path, mode="a", encoding="utf-8", delay=delay)
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter(_FILE_FORMAT))
    return handler


def read_log_config(config: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Return a dictionary for ``logging.config`` from a YAML file, or a copy of a given one."""
    import copy

    if isinstance(config, Mapping):
        return copy.deepcopy(dict(config))
    import yaml

    with open(str(config), encoding="utf-8") as file:
        settings = yaml.safe_load(file)
    if not isinstance(settings, dict):
        raise ValueError(  # noqa: TRY004 - the file is wrong, not the argument
            "log_config must be a YAML file with a dictionary for logging.config.dictConfig; "
            f"{config} holds {settings!r}: see the standard library's logging.config."
        )
    return settings
