"""A training logger for TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from brain_core.loggers.base import MainProcessLogger, Stats
from brain_dist import if_main_process, main_process_only

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

__all__ = ["TensorboardLogger"]


class TensorboardLogger(MainProcessLogger):
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
        """Return the step that each curve has reached."""
        return {key: dict(v) if isinstance(v, dict) else v for key, v in self.global_step.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from those steps; TensorBoard hides points beyond them, which come again."""
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
