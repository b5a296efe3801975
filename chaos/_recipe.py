"""The training that is killed: a tiny model with every kind of state that a run must restore."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import mse_loss

from brain_ckpt import Checkpoint, Checkpointer
from brain_ckpt.storage import filesystem
from brain_core import Brain, EpochCounter, Stage, seed_everything
from brain_dist import full_state_dict, get_rank
from chaos._cases import BATCH_SIZE, ROWS, VALID_ROWS
from chaos._journal import Journal, checksums
from chaos._parts import TRAIN_LOSS, callbacks_of, figures_of, logger_of, logs_in, states_of
from chaos._status import Phase, Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from contextlib import AbstractContextManager

    from brain_core import Callback
    from chaos._cases import Config

__all__ = ["SAVE_FOLDER", "train"]

SAVE_FOLDER = "save"
_RECORDS = "records"  # in a checkpoint's meta: the records before it
Sample = tuple[torch.Tensor, torch.Tensor, int]


class Rows(torch.utils.data.Dataset[Sample]):
    """Rows with an augmentation drawn from torch, numpy and random when a row is loaded."""

    def __init__(self, count: int, *, augment: bool) -> None:
        generator = torch.Generator().manual_seed(7)
        self._inputs = torch.randn(count, 4, generator=generator)
        self._targets = torch.randn(count, 2, generator=generator)
        self._augment = augment

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._inputs)

    def __getitem__(self, index: int) -> Sample:
        """Return inputs, targets and the row's number."""
        inputs = self._inputs[index]
        if self._augment:
            inputs = inputs + 0.1 * torch.randn(4) + random.gauss(0.0, 0.1) + np.random.normal() / 9
        return inputs, self._targets[index], index


class WatchedCheckpointer(Checkpointer):
    """Writes to the status when it saves, and to the journal what is saved.

    Parameters
    ----------
    journal : Journal
        Gets the acknowledged checkpoints.
    status : Status
        Gets the phases.
    folder, recoverables, asynchronous
        As for a `Checkpointer`.
    """

    def __init__(
        self,
        journal: Journal,
        status: Status,
        folder: Path,
        recoverables: Mapping[str, Any],
        *,
        asynchronous: bool,
    ) -> None:
        self._journal, self._status = journal, status
        self._started: list[int] = []  # the records before each save that is not published
        self._published: list[int] = []  # and before each that is, but not acknowledged
        super().__init__(folder, recoverables, asynchronous=asynchronous)
        filesystem.failpoint = self._on_file_operation

    def save_checkpoint(
        self, meta: Mapping[str, Any] | None = None, *args: Any, **kwargs: Any
    ) -> Checkpoint | None:
        """Save a checkpoint."""
        with self._saving():
            saved = super().save_checkpoint(self._with_records(meta), *args, **kwargs)
        self._acknowledge()
        return saved

    def save_and_keep_only(
        self, meta: Mapping[str, Any] | None = None, *args: Any, **kwargs: Any
    ) -> None:
        """Save a checkpoint and delete others."""
        with self._saving():
            super().save_and_keep_only(self._with_records(meta), *args, **kwargs)
        self._acknowledge()

    def recover_if_possible(self, *args: Any, **kwargs: Any) -> Checkpoint | None:
        """Recover, and write to the journal from where."""
        found = super().recover_if_possible(*args, **kwargs)
        only = kwargs.get("only")
        if only is None or only("brain", self.recoverables.get("brain")):
            name, records = (None, 0) if found is None else (Path(found.path).name, _records(found))
            self._journal.resumed(name, records)
        return found

    def poll(self) -> None:
        """Publish a save that is written."""
        super().poll()
        self._acknowledge()

    def close(self) -> None:
        """Publish a pending save."""
        super().close()
        self._acknowledge()

    def _with_records(self, meta: Mapping[str, Any] | None) -> dict[str, Any]:
        self._started.append(self._journal.records)
        return {**(meta or {}), _RECORDS: self._journal.records}

    def _saving(self) -> AbstractContextManager[None]:
        return self._status.inside(Phase.SAVE)

    def _on_file_operation(self, operation: str, path: str, detail: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            self._status.set_writing(True)
        if operation == "rename" and ".tmp-" in path and ".trash-" not in str(detail):
            self._published.append(self._started.pop(0))
            self._status.set_writing(False)

    def _acknowledge(self) -> None:
        for records in self._published:
            self._journal.acknowledged(records)
            self._status.count(Phase.PROGRESS)
        self._published.clear()


class Averages:
    """Keeps running means in a NumPy array, which its state holds."""

    def __init__(self) -> None:
        self._means = np.zeros(2)
        self._count = np.int64(0)

    def update(self, predictions: torch.Tensor) -> float:
        """Add the mean prediction; return a number that depends on all so far."""
        self._count += 1
        self._means += (predictions.detach().float().mean(0).numpy() - self._means) / self._count
        return float(self._means.sum())

    def state_dict(self) -> dict[str, Any]:
        """Return the array and the NumPy number."""
        return {"means": self._means.copy(), "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self._means, self._count = state["means"].copy(), state["count"]


class Run(Brain):
    """Has dropout, noise drawn from random and numpy, and a scheduler that steps with it.

    Its loss depends on attributes that training changes, and on a state of NumPy arrays. Callbacks
    take the place of the scheduler.
    """

    def __init__(
        self,
        *args: Any,
        journal: Journal,
        status: Status,
        unfreezing: bool,
        callbacks: list[Callback],
    ) -> None:
        super().__init__(*args, callbacks=callbacks)
        self.journal, self.status, self.unfreezing = journal, status, unfreezing
        self.callbacks = callbacks
        self.epoch = 0
        self.temperature = 1.0
        self.history: list[float] = []
        self.train_figures: dict[str, Any] = {}
        self.scheduler: torch.optim.lr_scheduler.LRScheduler | None = None

    def init_optimizers(self) -> None:
        """Make the optimizer, and its scheduler unless there are callbacks."""
        super().init_optimizers()
        if self.callbacks:
            return
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 60)
        assert self.checkpointer is not None
        self.checkpointer.add_recoverable("scheduler", self.scheduler)

    def on_stage_start(self, stage: Stage, epoch: int | None = None) -> None:
        """Write the phase, and train the first layer, too, from epoch 2 on."""
        self.epoch = epoch or 0
        if stage is Stage.VALID:
            self.status.enter(Phase.VALID)
        if self.unfreezing and stage is Stage.TRAIN and epoch == 2:  # noqa: PLR2004
            first = next(self.raw_modules["model"].children()).requires_grad_(True)  # noqa: FBT003 - torch's
            rate = {"lr": 0.01, "initial_lr": 0.01}
            self.optimizer.add_param_group({"params": first.parameters(), **rate})
            if self.scheduler is not None:
                self.scheduler.base_lrs.append(0.01)

    def fit_batch(self, batch: Any) -> torch.Tensor:
        """Write the phase."""
        self.status.enter(Phase.STEP)
        return super().fit_batch(batch)

    def evaluate_batch(self, batch: Any, stage: Stage) -> torch.Tensor:
        """Write the phase, and a record for a validation batch."""
        if stage is Stage.VALID:
            self.status.enter(Phase.VALID)
        loss = super().evaluate_batch(batch, stage)
        if stage is Stage.VALID:
            self._add_record("VALID", self.step, batch[2].tolist(), {"loss": float(loss).hex()})
        return loss

    def compute_forward(self, batch: Any, stage: Stage) -> torch.Tensor:
        """Return predictions; in training, with noise that the main process draws."""
        inputs = batch[0]
        if stage is Stage.TRAIN:
            inputs = inputs * (0.9 + 0.2 * random.random()) + 0.1 * np.random.normal()
        prediction: torch.Tensor = self.modules.model(inputs)
        return prediction

    def compute_objectives(self, predictions: torch.Tensor, batch: Any, stage: Stage) -> Any:
        """Return the mean squared error; in training, weighted by what the recipe keeps."""
        loss = mse_loss(predictions.float(), batch[1])
        if stage is not Stage.TRAIN:
            return loss
        self.temperature *= 0.99
        self.history = [*self.history[-3:], float(loss)]
        kept = self.hparams.averages.update(predictions) + sum(self.history)
        return loss * (self.temperature + 0.01 * kept)

    def on_fit_batch_end(self, batch: Any, outputs: Any, loss: Any, should_step: bool) -> None:  # noqa: ARG002 - Brain's interface
        """Step the scheduler, and add a record with all weights."""
        facts = {"loss": float(loss).hex(), "mean before": float(self.avg_train_loss).hex()}
        if should_step:
            if self.scheduler is not None:
                self.scheduler.step()
            facts |= self.whole_state()
        self._add_record("TRAIN", self.step, batch[2].tolist(), facts)

    def on_stage_end(self, stage: Stage, stage_loss: float, epoch: int | None = None) -> None:
        """Add a record of the mean; after validation, log and save."""
        if stage is Stage.TEST:
            return
        self.status.enter(Phase.BETWEEN)
        figures = figures_of(self.stage_stats)
        ended = {stage.name: float(stage_loss).hex(), **checksums("figures", figures)}
        self._add_record("ENDED", 0, [], ended)
        if stage is Stage.TRAIN:
            self.train_figures = figures
        else:
            self.stage_stats[TRAIN_LOSS] = self.train_figures["loss"]
            self._log(epoch, figures)
            assert self.checkpointer is not None
            self.checkpointer.save_and_keep_only({"loss": stage_loss}, min_keys=["loss"])

    def whole_state(self) -> dict[str, str]:
        """Return a text for each rate, weight, and state of the optimizer or a callback."""
        return {  # causes before effects: the first difference is reported
            **checksums("learning rate", self._rates()),
            **states_of(self.callbacks),
            **checksums("model", full_state_dict(self.raw_modules["model"])),
            **checksums("optimizer", full_state_dict(self.optimizer)["state"]),
        }

    def _rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def _log(self, epoch: int | None, figures: dict[str, Any]) -> None:
        """Log an epoch with the rate of each group; one that comes later is a column of its own."""
        rates = {f"lr {number}": rate for number, rate in enumerate(self._rates())}
        self.hparams.train_logger.log_stats(
            {"epoch": epoch, **rates}, train_stats=self.train_figures, valid_stats=figures
        )

    def _add_record(self, kind: str, batch: int, ids: list[int], facts: dict[str, str]) -> None:
        self.journal.add([kind, self.epoch, batch, ids, facts])


def train(config: Config, folder: Path, journal: Journal, status: Status) -> None:
    """Train on this rank to the end, and write the final state to the journal."""
    seed_everything(11, verbose=False)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.Dropout(0.4), torch.nn.Tanh(), torch.nn.Linear(8, 2)
    )
    model[0].requires_grad_(not config.unfreezing)
    averages = Averages()
    counter = EpochCounter(config.epochs if config.fits == 1 else 1)
    checkpointer = WatchedCheckpointer(
        journal,
        status,
        folder / SAVE_FOLDER,
        {"model": model, "counter": counter},
        asynchronous=config.asynchronous,
    )
    checkpointer.add_recoverable("averages", averages, per_rank=True)
    brain = Run(
        {"model": model},
        lambda ps: torch.optim.AdamW([p for p in ps if p.requires_grad], lr=0.05),
        {"train_logger": logger_of(config, folder), "averages": averages},
        {
            "device": "cpu",
            "precision": config.precision,
            "grad_accumulation_factor": config.accumulation,
            "ckpt_interval_steps": config.interval,
            "parallel": config.parallel,
        },
        checkpointer,
        journal=journal,
        status=status,
        unfreezing=config.unfreezing,
        callbacks=callbacks_of(config),
    )
    _fit(brain, counter, config)
    if config.fits > 1:
        brain.evaluate(Rows(VALID_ROWS, augment=False), min_key="loss", progressbar=False)
        _fit(brain, range(2, config.epochs + 1), config)
    status.enter(Phase.END)
    last = {**brain.whole_state(), "last epoch": str(brain.current_epoch)}
    best = brain.evaluate(Rows(VALID_ROWS, augment=False), min_key="loss", progressbar=False)
    checkpointer.close()
    kept = sorted(_records(each) for each in checkpointer.list_checkpoints())
    if get_rank() == 0:
        last |= logs_in(folder)
    durations = {"seconds": status.seconds, "times": status.times}
    facts = {**last, "best loss": best.hex()}
    journal.finished({"facts": facts, "kept": kept, "durations": durations})


def _fit(brain: Run, epochs: Iterable[int], config: Config) -> None:
    """Train on a data set, or on a loader of the script's own."""
    loading = {"batch_size": BATCH_SIZE, "shuffle": True, "num_workers": config.workers}
    data: Any = Rows(ROWS, augment=True)
    if config.loader == "plain":
        data, loading = torch.utils.data.DataLoader(data, **loading), {}  # type: ignore[arg-type]
    brain.fit(
        epochs,
        data,
        Rows(VALID_ROWS, augment=False),
        progressbar=False,
        train_loader_kwargs=loading,
        valid_loader_kwargs={"batch_size": 2 * BATCH_SIZE},
    )


def _records(checkpoint: Checkpoint) -> int:
    """Return the number of records before a checkpoint."""
    return int(checkpoint.meta[_RECORDS])
