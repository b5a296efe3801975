"""The directory of an experiment: its hyperparameters, environment and log."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_data.experiment.environment import get_environment_description
from brain_data.experiment.logging import ExperimentLogging, read_log_config
from brain_dist import get_rank, raise_on_all_ranks

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from typing_extensions import Self

    from brain_data.experiment.logging import LogConfig

_PACKAGES = ("brain_data", "brain_core", "brain_dist", "brain_ckpt")


class ExperimentDirectory:
    """The experiment that :func:`create_experiment_directory` has set up in this process.

    Logging and the exception hook stay until the process ends. :meth:`restore`, or the end of a
    ``with``, restores the former ones.

    Attributes
    ----------
    path : Path
        The directory.
    """

    def __init__(self, path: Path, log: ExperimentLogging | None) -> None:
        self.path = path
        self._log = log

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore logging and the exception hook."""
        self.restore()

    def restore(self) -> None:
        """Restore logging and the exception hook; a second call does nothing."""
        log, self._log = self._log, None
        if log is not None:
            log.restore()


class _Active:
    """The experiment whose logging is set up in this process; the next one replaces it."""

    experiment: ExperimentDirectory | None = None


def create_experiment_directory(
    experiment_directory: str | os.PathLike[str],
    hyperparams_to_save: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | str | None = None,
    log_config: LogConfig = None,
    save_env_desc: bool = True,
) -> ExperimentDirectory:
    """Create the directory of an experiment, and log into it from then on.

    Rank 0 writes; every rank waits for it, and raises its error. The directory contains:

    - ``hyperparams.yaml``: the hyperparameters with references resolved and overrides applied;
    - the calling script, if there is one (a notebook has none);
    - ``log.txt``: the log of all runs. An exception that ends a process is logged too, before the
      usual traceback; that of another rank than 0 is logged in ``log-rank<r>.txt``;
    - ``env.log``: see :func:`get_environment_description`.

    Parameters
    ----------
    experiment_directory : path
        Created with its parents if it does not exist.
    hyperparams_to_save : path, optional
        The HyperPyYAML file of the experiment.
    overrides : mapping or str, optional
        Hyperparameters that the command line overrides; a string is YAML.
    log_config : path or mapping, optional
        A YAML file (or its content) for ``logging.config``, whose handler ``file_handler`` gets the
        name of the log file. Default: level INFO to the file and to the console.
    save_env_desc : bool
        Whether ``env.log`` is written.

    Returns
    -------
    ExperimentDirectory
        Its ``restore()``, or a ``with``, restores logging and the exception hook.

    Raises
    ------
    OSError
        If the directory or a file in it cannot be written; on every rank, before any training.
    """
    directory = Path(os.path.abspath(experiment_directory))
    if _Active.experiment is not None:
        _Active.experiment.restore()
        _Active.experiment = None
    script = _calling_script()
    error: BaseException | None = None
    log = None
    rank = get_rank()
    try:
        if rank == 0:
            files = _texts(hyperparams_to_save, overrides, script, save_env_desc)
            log = _write_all(directory, files, script, log_config)
    except Exception as caught:  # noqa: BLE001 - raised below, on every rank
        error = caught
    try:
        raise_on_all_ranks(error)
        if rank != 0:
            log = ExperimentLogging(directory / f"log-rank{rank}.txt", None, is_main_process=False)
    except BaseException:
        if log is not None:
            log.restore()
        raise
    _Active.experiment = ExperimentDirectory(directory, log)
    return _Active.experiment


def _texts(
    hyperparams: str | os.PathLike[str] | None,
    overrides: Mapping[str, Any] | str | None,
    script: Path | None,
    environment: bool,
) -> dict[str, str]:
    """Return the content of the files, before anything is written."""
    texts = {}
    if hyperparams is not None:
        texts["hyperparams.yaml"] = _resolved(hyperparams, overrides)
    if environment:
        texts["env.log"] = get_environment_description(None if script is None else script.parent)
    return texts


def _write_all(
    directory: Path, files: Mapping[str, str], script: Path | None, log_config: LogConfig
) -> ExperimentLogging:
    settings = None if log_config is None else read_log_config(log_config)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            _write(directory / name, text)
        if script is not None and script.parent != directory.resolve():
            shutil.copy(script, directory)
        # Raises here if the log cannot be written, and not at the first log line.
        with (directory / "log.txt").open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise _unwritable_error(error, directory) from error
    log = ExperimentLogging(directory / "log.txt", settings, is_main_process=True)
    logger = logging.getLogger("brain_data.experiment")
    logger.info("Beginning experiment!")
    logger.info("Experiment folder: %s", directory)
    return log


def _resolved(
    hyperparams: str | os.PathLike[str], overrides: Mapping[str, Any] | str | None
) -> str:
    from hyperpyyaml import resolve_references

    path = os.path.abspath(hyperparams)
    with open(path, encoding="utf-8") as file:
        try:
            text = resolve_references(file, overrides or None).getvalue()
        except OSError:  # of an included file, which it names
            raise
        except Exception as error:
            raise ValueError(
                "The hyperparameters of an experiment must be a HyperPyYAML file whose references "
                f"resolve; {path} with the overrides {overrides!r} is not: "
                f"{type(error).__name__}: {error}. Correct the file or the overrides."
            ) from error
    today = date.today()  # noqa: DTZ011 - the local date
    return f"# Generated {today} from:\n# {path}\n# yamllint disable\n{text}"


def _write(path: Path, text: str) -> None:
    # Written to another file and renamed: a killed run leaves the former file unchanged.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _calling_script() -> Path | None:
    """Return the file of the first caller outside these packages; None in a notebook or a shell."""
    frame = sys._getframe(1)  # noqa: SLF001 - inspect.currentframe, without importing inspect
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] not in _PACKAGES:
            # Not the code object's name, which in a notebook is that of a temporary file.
            name = frame.f_globals.get("__file__")
            path = Path(name).resolve() if isinstance(name, str) else None
            return path if path is not None and path.is_file() else None
        frame = frame.f_back  # type: ignore[assignment]  # None above the outermost frame
    return None


def _unwritable_error(error: OSError, directory: Path) -> OSError:
    return type(error)(
        f"An experiment needs a directory that it can write to; {directory} is not one ({error}): "
        "choose another folder, or change its permissions."
    )
