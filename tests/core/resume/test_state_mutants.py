"""Remove one piece of the saved state at a time: each must be detected and named as the cause.

The option -s of pytest prints the cause that `assert_resumes_exactly` names for each piece.
"""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch

import brain_core.resume.rank_state
import brain_core.resume.run_state
from brain_ckpt import Checkpointer, RNGState, mark_as_loader
from brain_core import Brain, EpochCounterWithStopper, Stage
from brain_core.loggers.base import TrainLogger
from brain_core.testing import assert_resumes_exactly
from brain_data import SaveableDataLoader

AFTER_BATCH_4_OF_EPOCH_2 = [6 + 4]


class Steps(TrainLogger):
    """A logger that counts its calls."""

    def __init__(self):
        self.logged = 0

    def log_stats(self, *_, **__):
        self.logged += 1

    def state_dict(self):
        return {"logged": self.logged}

    def load_state_dict(self, state):
        self.logged = state["logged"]


class Everything(Brain):
    """A Brain whose training depends on every kind of saved state."""

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
    """Make a Brain with dropout, AdamW, accumulation, a scaler, early stopping and a logger."""
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
    """Return arguments for two epochs of five training batches and one validation batch."""
    generator = torch.Generator().manual_seed(7)
    return {
        "epoch_counter": brain.hparams.counter,
        "train_set": torch.randn(10, 3, generator=generator),
        "valid_set": torch.randn(2, 3, generator=generator),
        "train_loader_kwargs": {"batch_size": 2, "shuffle": True},
        "valid_loader_kwargs": {"batch_size": 2},
    }


def without_generator(name):
    """Do not restore one of the random generators."""

    def mutate(monkeypatch):
        class Without(RNGState):
            def load_state_dict(self, state):
                super().load_state_dict({**state, name: RNGState().state_dict()[name]})

        monkeypatch.setattr(brain_core.resume.rank_state, "RNGState", Without)

    return mutate


def without_recoverable(name):
    """Do not save one of the recoverables."""

    def mutate(monkeypatch):
        add = Checkpointer.add_recoverable

        def add_others(self, each, *args, **kwargs):
            if each != name:
                add(self, each, *args, **kwargs)

        monkeypatch.setattr(Checkpointer, "add_recoverable", add_others)

    return mutate


def without_generators_of_each_rank(monkeypatch):
    """Restore the random state of rank 0 on every rank."""
    add = Checkpointer.add_recoverable

    def add_for_all(self, name, obj, *args, **kwargs):
        add(self, name, obj, *args, **{**kwargs, "per_rank": False})

    monkeypatch.setattr(Checkpointer, "add_recoverable", add_for_all)


def without_position(monkeypatch):
    """Do not restore the position in the training data."""
    monkeypatch.setattr(SaveableDataLoader, "load_state_dict", lambda self, state: None)


def without_mean(monkeypatch):
    """Do not restore the running mean of the losses."""
    read = brain_core.resume.run_state.Progress.from_yaml
    monkeypatch.setattr(brain_core.resume.rank_state.RankState, "pop_losses", lambda self: None)

    def forget(text):
        progress = read(text)
        progress.loss_total, progress.loss_count = 0.0, 0
        return progress

    monkeypatch.setattr(brain_core.resume.run_state.Progress, "from_yaml", forget)


def without_epoch(monkeypatch):
    """Do not restore the epoch."""
    without_recoverable("counter")(monkeypatch)
    read = brain_core.resume.run_state.Progress.from_yaml

    def forget(text):
        progress = read(text)
        progress.epoch = None
        return progress

    monkeypatch.setattr(brain_core.resume.run_state.Progress, "from_yaml", forget)


def without_early_stopping(monkeypatch):
    """Restore only the epoch of the counter, as SpeechBrain does."""
    recover = EpochCounterWithStopper._recover

    @mark_as_loader
    def recover_epoch(self, path, end_of_epoch=True):
        former = (self.best_limit, self.best_score, self.should_stop)
        recover(self, path, end_of_epoch)
        self.best_limit, self.best_score, self.should_stop = former

    monkeypatch.setattr(EpochCounterWithStopper, "_recover", recover_epoch)


def without_window(monkeypatch):
    """Save after each batch, also inside an accumulation window."""
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
        r"counter is a recoverable, but its restored state differs .*best_score: .* inf now",
    ),
    "window": (without_window, r"the accumulation window: .* gradients .* are lost"),
}


def test_training_resumes_exactly_with_the_complete_state():
    """Without a mutant the same training passes, so a failure is due to the mutant."""
    assert_resumes_exactly(make_brain, fit_args, kills=[2, 6, 9, 10])


@pytest.mark.parametrize("name", MUTANTS)
def test_a_missing_piece_of_state_is_detected_and_named(name, monkeypatch):
    """Without the piece, the run differs and the message names the piece as the likely cause."""
    mutate, cause = MUTANTS[name]
    mutate(monkeypatch)
    with pytest.raises(AssertionError) as raised:
        assert_resumes_exactly(
            make_brain,
            fit_args,
            kills=AFTER_BATCH_4_OF_EPOCH_2 if "rank" not in name else [3],
            ranks=2 if "rank" in name else 1,
        )
    text = str(raised.value)
    print(f"\n{name:24} {text.partition('Likely cause: ')[2]}")  # noqa: T201  # the table
    assert re.search(cause, text), text
