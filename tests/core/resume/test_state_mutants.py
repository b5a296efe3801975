"""Leave out one piece of the saved state at a time: each has to be missed, and named.

    python -m pytest tests/core/test_state_mutants.py -s

prints what `assert_resumes_exactly` says of each.
"""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch

import brain_core.resume.run_state
from brain_ckpt import Checkpointer, RNGState, mark_as_loader
from brain_core import Brain, EpochCounterWithStopper, Stage
from brain_core.loggers.base import TrainLogger
from brain_core.testing import assert_resumes_exactly
from brain_data import SaveableDataLoader

AFTER_BATCH_4_OF_EPOCH_2 = [6 + 4]


class Steps(TrainLogger):
    """A logger that counts what it was given."""

    def __init__(self):
        self.logged = 0

    def log_stats(self, *_, **__):
        self.logged += 1

    def state_dict(self):
        return {"logged": self.logged}

    def load_state_dict(self, state):
        self.logged = state["logged"]


class Everything(Brain):
    """A training that depends on every piece of state that there is."""

    def compute_forward(self, batch, stage):
        noise = random.random() + np.random.rand() if stage is Stage.TRAIN else 0.0
        return self.modules.model(batch + 0.1 * noise)

    def compute_objectives(self, predictions, batch, stage):
        return predictions.square().mean()

    def init_optimizers(self):
        super().init_optimizers()
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 9)

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        if should_step:
            self.scheduler.step()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage is Stage.VALID:
            self.hparams.counter.update_metric(stage_loss)
            self.hparams.train_logger.log_stats({"epoch": epoch})


def make_brain(folder):
    """Make it with dropout, AdamW, accumulation, a scaler, early stopping and a logger."""
    counter = EpochCounterWithStopper(2, limit_to_stop=2, limit_warmup=0, direction="min")
    brain = Everything(
        {"model": torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.3))},
        lambda parameters: torch.optim.AdamW(parameters, lr=0.1),
        {"counter": counter, "train_logger": Steps()},
        {"device": "cpu", "grad_accumulation_factor": 2, "ckpt_interval_steps": 1},
        Checkpointer(folder),
    )
    brain.scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=1)
    return brain


def fit_args(brain):
    """Train on five batches and validate on one, twice."""
    generator = torch.Generator().manual_seed(7)
    return {
        "epoch_counter": brain.hparams.counter,
        "train_set": torch.randn(10, 3, generator=generator),
        "valid_set": torch.randn(2, 3, generator=generator),
        "train_loader_kwargs": {"batch_size": 2, "shuffle": True},
        "valid_loader_kwargs": {"batch_size": 2},
    }


def without_generator(name):
    """Leave a generator as it is when the others are restored."""

    def mutate(monkeypatch):
        class Without(RNGState):
            def load_state_dict(self, state):
                super().load_state_dict({**state, name: RNGState().state_dict()[name]})

        monkeypatch.setattr(brain_core.resume.run_state, "RNGState", Without)

    return mutate


def without_recoverable(name):
    """Do not take something into the checkpoint."""

    def mutate(monkeypatch):
        add = Checkpointer.add_recoverable

        def add_others(self, each, *args, **kwargs):
            if each != name:
                add(self, each, *args, **kwargs)

        monkeypatch.setattr(Checkpointer, "add_recoverable", add_others)

    return mutate


def without_generators_of_each_rank(monkeypatch):
    """Give every rank the first one's random state."""
    add = Checkpointer.add_recoverable

    def add_for_all(self, name, obj, *args, **kwargs):
        add(self, name, obj, *args, **{**kwargs, "per_rank": False})

    monkeypatch.setattr(Checkpointer, "add_recoverable", add_for_all)


def without_position(monkeypatch):
    """Begin the epoch's data anew."""
    monkeypatch.setattr(SaveableDataLoader, "load_state_dict", lambda self, state: None)


def without_mean(monkeypatch):
    """Count the epoch's losses from here."""
    read = brain_core.resume.run_state.Progress.from_yaml
    monkeypatch.setattr(brain_core.resume.run_state.RankState, "pop_losses", lambda self: None)

    def forget(text):
        progress = read(text)
        progress.loss_total, progress.loss_count = 0.0, 0
        return progress

    monkeypatch.setattr(brain_core.resume.run_state.Progress, "from_yaml", forget)


def without_epoch(monkeypatch):
    """Begin with the first epoch again."""
    without_recoverable("counter")(monkeypatch)
    read = brain_core.resume.run_state.Progress.from_yaml

    def forget(text):
        progress = read(text)
        progress.epoch = None
        return progress

    monkeypatch.setattr(brain_core.resume.run_state.Progress, "from_yaml", forget)


def without_early_stopping(monkeypatch):
    """Restore the epoch alone, as SpeechBrain does."""
    recover = EpochCounterWithStopper._recover

    @mark_as_loader
    def recover_epoch(self, path, end_of_epoch=True):
        former = (self.best_limit, self.best_score, self.should_stop)
        recover(self, path, end_of_epoch)
        self.best_limit, self.best_score, self.should_stop = former

    monkeypatch.setattr(EpochCounterWithStopper, "_recover", recover_epoch)


def without_window(monkeypatch):
    """Save after each batch, also where gradients wait for the step."""
    train_batch = Brain._train_batch

    def train_and_save(self, *args):
        train_batch(self, *args)
        boundary = self._fit_state.boundary
        boundary.schedule.steps_done += 1
        if not self._window_ends():
            boundary.reached()

    monkeypatch.setattr(Brain, "_train_batch", train_and_save)


MUTANTS = {
    "generator of Python": (without_generator("python"), r"Python's generator .* not restored"),
    "generator of NumPy": (without_generator("numpy"), r"NumPy's generator .* not restored"),
    "generator of torch": (without_generator("torch"), r"torch's generator was not restored"),
    "generators of each rank": (
        without_generators_of_each_rank,
        r"(?s)on rank 1.*Python's generator .* not restored; .*torch's generator",
    ),
    "model": (without_recoverable("model"), r"weights of modules\.model .* call "),
    "optimizer": (without_recoverable("optimizer"), r"self\.optimizer is in no checkpoint"),
    "scheduler": (without_recoverable("scheduler"), r"self\.scheduler is in no checkpoint"),
    "scaler": (without_recoverable("scaler"), r"self\.scaler is in no checkpoint"),
    "steps of the logger": (
        without_recoverable("train_logger"),
        r"hparams\.train_logger is in no checkpoint.*logged: 1 undisturbed, 0 now",
    ),
    "position": (without_position, r"position in the data .*was not restored"),
    "mean": (without_mean, r"the running mean of the epoch's losses was not restored"),
    "epoch": (without_epoch, r"the epoch counter was not restored"),
    "early stopping": (
        without_early_stopping,
        r"counter is among the recoverables, and was not restored .*best_score: .* inf now",
    ),
    "window": (without_window, r"the accumulation window: .* gradients .* are lost"),
}


def test_the_training_goes_on_exactly_when_nothing_is_left_out():
    """Else the mutants would prove nothing."""
    assert_resumes_exactly(make_brain, fit_args, kills=[2, 6, 9, 10])


@pytest.mark.parametrize("name", MUTANTS)
def test_a_piece_of_state_that_is_left_out_is_missed_and_named(name, monkeypatch):
    """The run differs, and the likely cause is the piece."""
    mutate, cause = MUTANTS[name]
    mutate(monkeypatch)
    with pytest.raises(AssertionError) as missed:
        assert_resumes_exactly(
            make_brain,
            fit_args,
            kills=AFTER_BATCH_4_OF_EPOCH_2 if "rank" not in name else [3],
            ranks=2 if "rank" in name else 1,
        )
    said = str(missed.value)
    print(f"\n{name:24} {said.partition('Likely cause: ')[2]}")  # noqa: T201  # the table
    assert re.search(cause, said), said
