"""The report of a run, written as training goes on."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from brain_ckpt import mark_as_loader, mark_as_saver, register_checkpoint_hooks
from brain_core.callbacks.base import Callback
from brain_core.callbacks.monitors import BatchTimer
from brain_core.charts.history import HISTORY, read_history
from brain_core.charts.page import report_as_html
from brain_core.charts.png import write_png
from brain_core.loggers.appended_file import AppendedFile, replace_file
from brain_core.loggers.base import plain_number
from brain_core.stage import Stage
from brain_dist import get_world_size, if_main_process

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from brain_core.brain import Brain

__all__ = ["Report"]


@register_checkpoint_hooks
class Report(Callback):
    """Writes ``report.html``, and ``curves.png`` if matplotlib is installed, as training goes on.

    Both show losses, all figures of ``brain.stage_stats``, learning rate, gradient norm,
    throughput, the share of time in which training waits for data, skipped steps, checkpoints and
    restarts.
    The page is one file that needs no network. They are written when `fit` begins and ends, and at
    ends of epochs, from ``history.jsonl``: a JSON object per line, which is also written within
    epochs. When a run resumes, what it will repeat is removed there: each step is in it once.
    ``brain-report DIR...`` writes the same of several runs.

    Put it last in the list of callbacks: it then has the figures of all others.

    Parameters
    ----------
    output_folder : str or Path
        The experiment directory; made if it is not there.
    every_steps : int
        Optimizer steps to a point of the curves within an epoch.
    min_seconds : float
        The least time between two pages at ends of epochs.

    Raises
    ------
    ValueError
        If ``every_steps`` is below 1.
    """

    def __init__(
        self,
        output_folder: str | os.PathLike[str],
        every_steps: int = 20,
        min_seconds: float = 10.0,
    ) -> None:
        if every_steps < 1:
            raise ValueError(f"Report needs every_steps of 1 or more, got {every_steps!r}.")
        self.output_folder = Path(output_folder)
        self.every_steps = every_steps
        self.min_seconds = min_seconds
        self._file = AppendedFile(self.output_folder / HISTORY)
        self._timer = BatchTimer()
        self._written = -math.inf
        self._stage = Stage.TRAIN  # with which an epoch goes on after a restart, without a start
        # Figures that were written: of a pass, and of a test that ran in its last hook.
        self._stats: deque[Mapping[str, Any]] = deque(maxlen=2)
        self._brain: Brain | None = None
        self._repeated = 0
        self._losses: list[torch.Tensor] = []
        self._norms: list[torch.Tensor] = []
        self._steps = self._skipped = 0

    def on_fit_start(self, brain: Brain, *, is_resumed: bool) -> None:
        """Note the start, and write the report."""
        self._brain, self._stage = brain, Stage.TRAIN
        self._stats.append(brain.stage_stats)
        if not is_resumed:
            self._begin_steps()
        if if_main_process():
            self.output_folder.mkdir(parents=True, exist_ok=True)
        self._write(
            "start",
            is_resumed=is_resumed,
            total_steps=brain.total_optimizer_steps,
            repeated_steps=self._repeated,
        )
        self._draw(min_seconds=0)
        self._timer.reset()

    def on_stage_start(self, brain: Brain, stage: Stage, epoch: int | None) -> None:
        """Note which pass begins."""
        del epoch
        self._brain, self._stage = brain, stage
        if stage is Stage.TRAIN:
            self._timer.reset()

    def watch_batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Measure how long each batch is waited for."""
        return self._timer.watch(batches)

    def on_fit_batch_end(self, brain: Brain, batch: Any, loss: torch.Tensor) -> None:
        """Keep the loss, which is read later."""
        del brain
        self._losses.append(loss)
        self._timer.count(batch)

    def on_optimizer_step(self, brain: Brain, *, is_taken: bool) -> None:
        """Keep the norm of the gradients, and write a row if it is due."""
        norm = brain.grad_norm
        self._steps += 1
        self._skipped += not is_taken
        if is_taken and norm is not None:
            self._norms.append(norm.detach())
        if self._steps >= self.every_steps:
            self._write_steps(brain)

    def on_stage_end(
        self, brain: Brain, stage: Stage, stats: Mapping[str, Any], epoch: int | None
    ) -> None:
        """Write the figures of the pass, and the report."""
        del epoch, stats
        self._brain, self._stage = brain, stage
        self._write_stage()
        self._draw(self.min_seconds if stage is not Stage.TEST else 0)

    def on_fit_end(self, brain: Brain) -> None:
        """Write the report."""
        del brain
        self._draw(min_seconds=0)

    @mark_as_saver
    def save(self, path: str | os.PathLike[str]) -> None:
        """Note a checkpoint; write where the history ends, and what is not in it yet."""
        self._write_stage()
        self._write("checkpoint")
        state = {
            "size_bytes": self._file.size_bytes(),
            "losses": _read(self._losses),
            "norms": _read(self._norms),
            "steps": self._steps,
            "skipped": self._skipped,
            "at": 0 if self._brain is None else self._brain.optimizer_step,
        }
        Path(path).write_text(json.dumps(state), encoding="utf-8")

    @mark_as_loader
    def load(self, path: str | os.PathLike[str], end_of_epoch: bool) -> None:
        """Remove from the history what will be repeated; starts stay."""
        del end_of_epoch
        state = json.loads(Path(path).read_text(encoding="utf-8"))
        self._begin_steps()
        self._losses = [torch.tensor(value, dtype=torch.float64) for value in state["losses"]]
        self._norms = [torch.tensor(value, dtype=torch.float64) for value in state["norms"]]
        self._steps, self._skipped = state["steps"], state["skipped"]
        if not if_main_process() or not self._file.path.exists():
            return
        run = read_history(self.output_folder)
        reached = max((row["step"] for row in (*run.steps, *run.stages)), default=0)
        self._repeated = max(0, reached - state["at"])
        self._file.undo_after(state["size_bytes"], lambda line: json.loads(line)["kind"] == "start")

    def _begin_steps(self) -> None:
        self._losses, self._norms = [], []
        self._steps = self._skipped = 0

    def _write_steps(self, brain: Brain) -> None:
        """Write a row of the steps since the last one."""
        losses = [value for value in _read(self._losses) if math.isfinite(value)]
        norms = _read(self._norms)
        samples, seconds, waited = self._timer.take()
        figures: dict[str, Any] = {"skipped_steps": self._skipped}
        if losses:
            figures["loss"] = sum(losses) / len(losses)
        if norms:
            figures["grad_norm"] = sum(norms) / len(norms)
        for number, rate in enumerate(_rates(brain)):
            figures["lr" if number == 0 else f"lr {number + 1}"] = rate
        if samples:
            figures["samples_per_s"] = samples * get_world_size() / seconds
            figures["data_wait"] = waited / seconds
        self._begin_steps()
        self._write("steps", **figures)

    def _write_stage(self) -> None:
        """Write the figures of a pass, once they are complete."""
        stats = {} if self._brain is None else self._brain.stage_stats
        if "loss" not in stats or any(stats is written for written in self._stats):
            return
        self._stats.append(stats)
        figures = {name: plain_number(value) for name, value in stats.items()}
        self._write("stage", **figures, stage=self._stage.name)

    def _write(self, kind: str, **figures: Any) -> None:
        if not if_main_process() or self._brain is None:
            return
        place = {"step": self._brain.optimizer_step, "epoch": self._brain.current_epoch}
        self._file.append(json.dumps({"kind": kind, "time": time.time(), **place, **figures}))

    def _draw(self, min_seconds: float) -> None:
        """Write the page and the picture, unless that was done a moment ago."""
        if not if_main_process() or time.monotonic() - self._written < min_seconds:
            return
        run = read_history(self.output_folder)
        page = report_as_html([run], run.name)
        replace_file(self.output_folder / "report.html", page.encode())
        if find_spec("matplotlib") is not None and (run.steps or run.stages):
            part = self.output_folder / "curves.png.tmp"
            write_png([run], part)
            part.replace(self.output_folder / "curves.png")
        self._written = time.monotonic()


def _read(values: list[torch.Tensor]) -> list[float]:
    """Read scalars of a device at once."""
    if not values:
        return []
    numbers: list[float] = torch.stack([v.reshape(()).double() for v in values]).tolist()
    return numbers


def _rates(brain: Brain) -> list[float]:
    """Return the different learning rates of all groups, in their order."""
    optimizers = list((brain.optimizers_dict or {}).values())
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return list(dict.fromkeys(float(group["lr"]) for group in groups if "lr" in group))
