"""Where the figures of an epoch go: a text file, TensorBoard, Weights & Biases."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_dist import if_main_process, main_process_only

if TYPE_CHECKING:
    import os

__all__ = ["FileTrainLogger", "TensorboardLogger", "TrainLogger", "WandBLogger"]

logger = logging.getLogger(__name__)

Stats = Mapping[str, Any]
_SETS = ("train", "valid", "test")


class TrainLogger:
    """What `Brain` recipes call at the end of a stage.

    A logger that has ``state_dict`` and ``load_state_dict`` is put into the checkpoint by `Brain`,
    so that it goes on after a restart instead of starting over.
    """

    def log_stats(
        self,
        stats_meta: Stats,
        train_stats: Stats | None = None,
        valid_stats: Stats | None = None,
        test_stats: Stats | None = None,
        verbose: bool = False,
    ) -> None:
        """Log the figures of an epoch.

        Parameters
        ----------
        stats_meta : mapping of str to scalar
            What the figures belong to: epoch, learning rate.
        train_stats, valid_stats, test_stats : mapping of str to scalar or list, optional
            A figure for the stage, or one for each of its batches.
        verbose : bool
            Also write to Python's logging.
        """
        raise NotImplementedError


class _MainProcessLogger(TrainLogger):
    """Writes on the first rank what `_write` is given, and tells Python's logging if asked to."""

    _is_verbose = False  # unless told otherwise

    @main_process_only
    def log_stats(
        self,
        stats_meta: Stats,
        train_stats: Stats | None = None,
        valid_stats: Stats | None = None,
        test_stats: Stats | None = None,
        verbose: bool | None = None,
    ) -> None:
        """Write the figures; see `TrainLogger.log_stats`."""
        sets = zip(_SETS, (train_stats, valid_stats, test_stats), strict=True)
        line = self._write(stats_meta, {name: s for name, s in sets if s is not None})
        if self._is_verbose if verbose is None else verbose:
            logger.info("%s", line)

    def _write(self, meta: Stats, sets: Mapping[str, Stats]) -> object:
        """Write figures that belong to ``meta``, by stage; return what to say of them."""
        raise NotImplementedError


class FileTrainLogger(_MainProcessLogger):
    """Write one line per call to a text file.

    After a restart, lines of training that will be done again are taken out first: each epoch
    stands in the file once. Lines with test figures stay.

    Parameters
    ----------
    save_file : str or Path
        The file, appended to.
    precision : int
        Decimals of a float: 2 gives ``1.35e-05``, and ``12.34`` between 1 and 100.
    """

    _is_verbose = True

    def __init__(self, save_file: str | os.PathLike[str], precision: int = 2) -> None:
        self.save_file = save_file
        self.precision = precision

    def _write(self, meta: Stats, sets: Mapping[str, Stats]) -> str:
        parts = [self._stats_to_string(meta)]
        parts += [self._stats_to_string(stats, name) for name, stats in sets.items()]
        line = " - ".join(parts)
        with open(self.save_file, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        return line

    def state_dict(self) -> dict[str, int]:
        """Say how long the file is, in bytes."""
        path = Path(self.save_file)
        return {"size_bytes": path.stat().st_size if path.exists() else 0}

    @main_process_only
    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take out the lines of the training that the checkpoint undid."""
        path = Path(self.save_file)
        if not path.exists() or path.stat().st_size <= state["size_bytes"]:
            return
        content = path.read_bytes()
        kept, undone = content[: state["size_bytes"]], content[state["size_bytes"] :]
        tests = [line for line in undone.splitlines(keepends=True) if b" - test " in line]
        shorter = path.with_name(path.name + ".tmp")
        shorter.write_bytes(kept + b"".join(tests))
        shorter.replace(path)

    def _stats_to_string(self, stats: Stats, dataset: str | None = None) -> str:
        prefix = f"{dataset} " if dataset else ""
        return ", ".join(f"{prefix}{key}: {self._number(value)}" for key, value in stats.items())

    def _number(self, value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        style = "f" if 1.0 < value < 100.0 else "e"  # noqa: PLR2004  # SpeechBrain's range
        return f"{value:.{self.precision}{style}}"


class TensorboardLogger(_MainProcessLogger):
    """Write scalars for TensorBoard; needs ``brain-core[tensorboard]``.

    Parameters
    ----------
    save_dir : str or Path
        The directory of event files.

    Raises
    ------
    ImportError
        If TensorBoard is not installed.
    """

    def __init__(self, save_dir: str | os.PathLike[str]) -> None:
        self.save_dir = save_dir
        self.global_step: dict[str, Any] = {"train": {}, "valid": {}, "test": {}, "meta": 0}
        self.writer: Any = self._open() if if_main_process() else None

    def _write(self, meta: Stats, sets: Mapping[str, Stats]) -> dict[str, Any]:
        """Write one point per figure, or one per entry of a list."""
        self.global_step["meta"] += 1
        for name, value in meta.items():
            self.writer.add_scalar(name, value, self.global_step["meta"])
        for name, stats in sets.items():
            for stat, values in stats.items():
                steps = self.global_step[name]
                for value in values if isinstance(values, list) else [values]:
                    steps[stat] = steps.get(stat, 0) + 1
                    self.writer.add_scalar(f"{stat}/{name}", value, steps[stat])
        return dict(meta)

    @main_process_only
    def log_audio(self, name: str, value: Any, sample_rate: int) -> None:
        """Write a sound: ``value`` holds the samples, ``sample_rate`` is in Hz."""
        self.writer.add_audio(name, value, self.global_step["meta"], sample_rate=sample_rate)

    @main_process_only
    def log_figure(self, name: str, value: Any) -> None:
        """Write a spectrogram, a tensor of shape (frequency, time), as a figure."""
        self.writer.add_figure(name, _spectrogram_figure(value), self.global_step["meta"])

    def state_dict(self) -> dict[str, Any]:
        """Say which step each curve has reached."""
        return {key: dict(v) if isinstance(v, dict) else v for key, v in self.global_step.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from those steps; points beyond them are hidden, since they come again."""
        self.global_step = {key: dict(v) if isinstance(v, dict) else v for key, v in state.items()}
        if self.writer is not None:
            self.writer.close()
            self.writer = self._open(purge_step=self.global_step["meta"] + 1)

    def _open(self, purge_step: int | None = None) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter  # an extra
        except ImportError as error:
            raise ImportError(
                "TensorboardLogger needs TensorBoard: pip install 'brain-core[tensorboard]'"
            ) from error
        return SummaryWriter(str(self.save_dir), purge_step=purge_step)


class WandBLogger(_MainProcessLogger):
    """Send figures to Weights & Biases; needs ``brain-core[wandb]``.

    Parameters
    ----------
    initializer : callable
        Makes the run on the main process, for instance ``wandb.init``.
    *args, **kwargs
        Passed to it.

    Raises
    ------
    RuntimeError
        If the run cannot be made; the cause is attached.
    """

    def __init__(self, initializer: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.run: Any = None
        if if_main_process():
            try:
                self.run = initializer(*args, **kwargs)
            except Exception as error:
                raise RuntimeError(
                    f"WandBLogger needs a run from its initializer, which raised {error!r}."
                ) from error

    def _write(self, meta: Stats, sets: Mapping[str, Stats]) -> dict[str, Any]:
        """Send the figures under the epoch's number."""
        assert self.run is not None, "main_process_only lets only the owner of the run in"
        figures = {name: dict(stats) for name, stats in sets.items()}
        self.run.log({**figures, **meta}, step=meta.get("epoch"))
        return dict(meta)


def _spectrogram_figure(spectrogram: Any) -> Any:
    try:
        from matplotlib.figure import Figure  # an extra
    except ImportError as error:
        raise ImportError("log_figure needs matplotlib: pip install 'brain-core[plot]'") from error
    figure = Figure(figsize=(16, 10), layout="tight")
    axes = figure.subplots()
    image = axes.imshow(spectrogram.detach().cpu().numpy().squeeze(), aspect="auto", origin="lower")
    figure.colorbar(image)
    return figure
