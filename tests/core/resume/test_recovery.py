"""Runs that are saved, stopped, killed and resumed."""

from __future__ import annotations

import itertools
import logging
import os
import random
import signal
import threading

import numpy as np
import pytest
import torch

from brain_ckpt import Checkpointer, CheckpointSaveError
from brain_core import (
    EpochCounter,
    EpochCounterWithStopper,
    FileTrainLogger,
    Stage,
    TrainingStopped,
)


class Killed(BaseException):
    """Simulates SIGKILL; the loop must not catch it."""


class Rows(torch.utils.data.Dataset):
    """Rows with an augmentation that uses all three random generators."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        inputs, targets = self.data[index]
        noise = torch.rand(()) + random.random() + np.random.rand()
        return inputs + 0.01 * noise, targets, index


@pytest.fixture
def job(regression, pairs, tmp_path):  # noqa: C901  # one run, hook by hook
    """Return a function that makes a run, which is killed at a given event."""

    class Run(regression):
        def __init__(self, *args, kill_at=None, **kwargs):
            super().__init__(*args, **kwargs)
            self.kill_at = kill_at
            self.events = 0
            self.rows = []
            self.means = []

        def event(self):
            self.events += 1
            if self.events == self.kill_at:
                raise Killed

        def compute_forward(self, batch, stage):
            if stage is Stage.TRAIN:
                self.rows.append(batch[2].tolist())
            return super().compute_forward(batch, stage)

        def on_fit_batch_end(self, batch, outputs, loss, should_step):
            if should_step:
                self.hparams.scheduler.step()
            random.random(), np.random.rand(), torch.rand(())
            self.event()

        def evaluate_batch(self, batch, stage):
            self.event()
            return super().evaluate_batch(batch, stage)

        def init_optimizers(self):
            super().init_optimizers()
            self.hparams.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 50)
            if self.checkpointer is not None:
                self.checkpointer.add_recoverable("scheduler", self.hparams.scheduler)

        def on_stage_end(self, stage, stage_loss, epoch=None):
            self.means.append((stage, epoch, stage_loss))
            if stage is Stage.VALID:
                self.hparams.train_logger.log_stats(
                    {"epoch": epoch}, valid_stats={"loss": stage_loss}
                )
                self.checkpointer.save_and_keep_only({"loss": stage_loss}, min_keys=["loss"])
            self.event()

    def make(folder, kill_at=None, workers=0, asynchronous=False, **run_opts):
        torch.manual_seed(5), random.seed(5), np.random.seed(5)
        net = torch.nn.Sequential(
            torch.nn.Linear(4, 6), torch.nn.Dropout(0.4), torch.nn.Linear(6, 2)
        )
        counter = EpochCounter(3)
        folder = tmp_path / folder
        folder.mkdir(exist_ok=True)
        brain = Run(
            {"model": net},
            lambda p: torch.optim.AdamW(p, lr=0.05),
            {"counter": counter, "train_logger": FileTrainLogger(folder / "log.txt")},
            # The test counts events from 0 in each start.
            {"device": "cpu", "recover_attributes": False, **run_opts},
            Checkpointer(
                folder / "save", {"model": net, "counter": counter}, asynchronous=asynchronous
            ),
            kill_at=kill_at,
        )
        brain.train = lambda: brain.fit(
            counter,
            Rows(pairs),
            Rows(pairs),
            train_loader_kwargs={"batch_size": 4, "shuffle": True, "num_workers": workers},
            valid_loader_kwargs={"batch_size": 8},
        )
        brain.close = brain.checkpointer.close
        return brain

    return make


def weights(brain):
    """Return all weights in one tensor."""
    return torch.cat([p.detach().flatten() for p in brain.modules.parameters()])


def ends_with(items, part):
    """Return whether a list ends with another list, which may be empty."""
    return items[len(items) - len(part) :] == part


@pytest.mark.parametrize(
    "run_opts",
    [
        pytest.param({"ckpt_interval_steps": 2}, marks=pytest.mark.long),
        {"ckpt_interval_steps": 1, "grad_accumulation_factor": 4},
        pytest.param({"ckpt_interval_steps": 3, "precision": "bf16"}, marks=pytest.mark.long),
        {"ckpt_interval_steps": 0},
    ],
    ids=["every two", "accumulating", "bf16", "epochs only"],
)
def test_a_run_killed_anywhere_resumes_bit_for_bit(job, run_opts):
    """Weights, batches, means and the text log equal those of an undisturbed run."""
    undisturbed = job("undisturbed", **run_opts)
    undisturbed.train()
    log = (undisturbed.checkpointer.checkpoints_dir.parent / "log.txt").read_text()
    for kill_at in range(1, undisturbed.events, 5):
        name = f"killed-{kill_at}"
        first = job(name, kill_at=kill_at, **run_opts)
        with pytest.raises(Killed):
            first.train()
        first.close()
        second = job(name, **run_opts)
        second.train()
        second.close()
        assert torch.equal(weights(second), weights(undisturbed)), kill_at
        assert ends_with(undisturbed.rows, second.rows), kill_at
        assert ends_with(undisturbed.means, second.means), kill_at
        assert (second.checkpointer.checkpoints_dir.parent / "log.txt").read_text() == log


def test_background_saves_are_complete_when_fit_returns(job):
    """The last save is published, and a run that resumes from one is bit-equal."""
    undisturbed = job("undisturbed", asynchronous=True, ckpt_interval_steps=4)
    undisturbed.train()
    assert undisturbed.checkpointer.find_checkpoint().meta["loss"] == undisturbed.means[-1][2]
    first = job("run", asynchronous=True, kill_at=15, ckpt_interval_steps=4)
    with pytest.raises(Killed):
        first.train()
    first.close()
    second = job("run", asynchronous=True, ckpt_interval_steps=4)
    second.train()
    assert torch.equal(weights(second), weights(undisturbed))


def test_a_run_killed_repeatedly_resumes_bit_for_bit(job):
    """Kills happen in training and validation, with another number of workers each time."""
    options = {"ckpt_interval_steps": 2, "grad_accumulation_factor": 3}
    undisturbed = job("undisturbed", **options)
    undisturbed.train()
    for start in itertools.count():
        brain = job("killed", kill_at=4 + start % 3, workers=start % 3, **options)
        try:
            brain.train()
        except Killed:
            brain.close()
            continue
        break
    assert start > 5
    assert torch.equal(weights(brain), weights(undisturbed))


def test_a_kill_in_validation_does_not_repeat_the_epochs_training(job):
    """With an interval, a checkpoint is saved before validation begins."""
    # The events: 6 training batches, the end of the stage, then validation batches.
    first = job("run", kill_at=9, ckpt_interval_steps=4)
    with pytest.raises(Killed):
        first.train()
    first.close()
    second = job("run", ckpt_interval_steps=4)
    second.train()
    assert len(second.rows) == 2 * 6
    assert [(s.name, e) for s, e, _ in second.means][:2] == [("TRAIN", 1), ("VALID", 1)]


def test_a_resumed_run_logs_its_position(job, caplog):
    """The log line contains epoch, batch and optimizer step."""
    first = job("run", kill_at=6, ckpt_interval_steps=2)
    with pytest.raises(Killed):
        first.train()
    first.close()
    with caplog.at_level(logging.INFO):
        job("run", ckpt_interval_steps=2).train()
    assert "epoch 1, batch 4, optimizer step 4" in caplog.text


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_at_the_step_boundary_and_exits_with_code_75(job, name):
    """The run stops at the end of the window, and the resumed run is bit-equal."""
    undisturbed = job("undisturbed", grad_accumulation_factor=3)
    undisturbed.train()
    first = job("stopped", grad_accumulation_factor=3)
    hook = first.on_fit_batch_start
    first.on_fit_batch_start = lambda batch, should_step: (
        os.kill(os.getpid(), getattr(signal, name)) if first.step == 1 else hook(batch, should_step)
    )
    with pytest.raises(TrainingStopped, match=name) as stopped:
        first.train()
    assert stopped.value.code == 75
    assert len(first.rows) == 3
    first.close()
    second = job("stopped", grad_accumulation_factor=3)
    second.train()
    assert torch.equal(weights(second), weights(undisturbed))


def test_a_signal_in_validation_stops_at_once_if_the_training_is_saved(job):
    """With an interval, validation stops at the next batch."""
    brain = job("run", ckpt_interval_steps=5)
    evaluate = brain.evaluate_batch

    def stopping(batch, stage):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(batch, stage)

    brain.evaluate_batch = stopping
    with pytest.raises(TrainingStopped):
        brain.train()
    assert [stage.name for stage, _, _ in brain.means] == ["TRAIN"]


def test_a_recipe_can_call_stop(job):
    """The exception contains the recipe's reason."""
    brain = job("run")
    brain.on_fit_batch_start = lambda *_: brain.stop("good enough")
    with pytest.raises(TrainingStopped, match="good enough"):
        brain.train()
    assert len(brain.rows) == 1


def test_evaluate_after_a_checkpoint_within_an_epoch_returns_its_own_mean(
    regression, pairs, tmp_path
):
    """`evaluate` uses its own count and keeps the training's state, unlike SpeechBrain 1.1."""
    net = torch.nn.Linear(4, 2)
    brain = regression(
        {"model": net},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        run_opts={"ckpt_interval_steps": 9, "device": "cpu"},
        checkpointer=Checkpointer(tmp_path, {"model": net}),
    )
    brain.fit(range(1), pairs)
    brain.step, brain.optimizer_step = 5, 99
    momentum = brain.optimizer.state_dict()["state"][0]["momentum_buffer"].clone()
    mean = brain.evaluate(pairs)
    with torch.no_grad():
        expected = np.mean([torch.nn.functional.mse_loss(net(x), y).item() for x, y in pairs])
    assert mean == pytest.approx(expected, rel=1e-6)
    assert (brain.step, brain.optimizer_step) == (5, 99)
    assert torch.equal(brain.optimizer.state_dict()["state"][0]["momentum_buffer"], momentum)


def test_evaluate_loads_the_best_checkpoints_model_without_an_optimizer(job, regression, pairs):
    """A Brain without an optimizer can evaluate the best checkpoint."""
    trained = job("run")
    trained.train()
    trained.close()
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Dropout(0.4), torch.nn.Linear(6, 2))
    checkpointer = Checkpointer(trained.checkpointer.checkpoints_dir, {"model": net})
    tester = regression({"model": net}, checkpointer=checkpointer)
    best = checkpointer.find_checkpoint(min_key="loss").meta["loss"]
    assert best == min(loss for stage, _, loss in trained.means if stage is Stage.VALID)
    tester.evaluate(pairs, min_key="loss")
    checkpointer.load_checkpoint(
        checkpointer.find_checkpoint(min_key="loss"), only=lambda n, o: o is net
    )
    assert not torch.equal(weights(tester), torch.zeros_like(weights(tester)))


def test_a_checkpoint_of_the_trainings_end_does_not_shift_the_next_epoch(
    regression, pairs, tmp_path
):
    """A checkpoint in on_stage_end(TRAIN) resumes at step 0 of the next epoch.

    In SpeechBrain 1.1 the next epoch continued the step and the average of the old one.
    """

    class Saving(regression):
        def on_stage_end(self, stage, stage_loss, epoch=None):
            if stage is Stage.TRAIN:
                self.checkpointer.save_checkpoint()

    def make():
        net = torch.nn.Linear(4, 2)
        counter = EpochCounter(2)
        brain = Saving(
            {"model": net},
            lambda p: torch.optim.SGD(p, lr=0.1),
            checkpointer=Checkpointer(tmp_path, {"model": net, "counter": counter}),
        )
        return brain, counter

    brain, counter = make()
    counter.limit = 1
    brain.fit(counter, pairs)
    brain.checkpointer.close()
    again, counter = make()
    steps = []
    again.on_fit_batch_end = lambda *_: steps.append((again.step, again.optimizer_step))
    again.fit(counter, pairs)
    assert steps[0] == (1, 23)


def test_finished_epochs_of_a_range_are_not_repeated(job, pairs):
    """fit(range(3)) resumes in the epoch of the checkpoint."""
    arguments = (range(3), Rows(pairs), Rows(pairs))
    kwargs = {"train_loader_kwargs": {"batch_size": 4, "shuffle": True}}
    undisturbed = job("undisturbed")
    undisturbed.fit(*arguments, **kwargs)
    first = job("run", kill_at=40)
    with pytest.raises(Killed):
        first.fit(*arguments, **kwargs)
    first.close()
    second = job("run")
    second.fit(*arguments, **kwargs)
    assert torch.equal(weights(second), weights(undisturbed))
    assert {epoch for _, epoch, _ in second.means} == {1, 2}


def test_early_stopping_continues_after_a_restart(regression, pairs, tmp_path):
    """A plateau stops the restarted run in the same epoch as an undisturbed run."""

    def run(limit):
        net = torch.nn.Linear(4, 2)
        counter = EpochCounterWithStopper(limit, 3, 0, "min")

        class Flat(regression):
            def on_stage_end(self, stage, stage_loss, epoch=None):
                counter.update_metric(1.0)
                self.checkpointer.save_checkpoint()

        checkpointer = Checkpointer(tmp_path, {"model": net, "counter": counter})
        Flat({"model": net}, torch.optim.SGD, checkpointer=checkpointer).fit(counter, pairs)
        checkpointer.close()
        return counter.current

    assert run(2) == 2
    assert run(50) == 4


def test_an_optimizer_step_limit_ends_training(job):
    """Training ends at the limit, also after a restart."""
    brain = job("run", optimizer_step_limit=8, ckpt_interval_steps=8)
    brain.train()
    assert (brain.optimizer_step, len(brain.rows)) == (8, 8)
    brain.close()
    again = job("run", optimizer_step_limit=8, ckpt_interval_steps=8)
    again.train()
    assert len(again.rows) == 0


def test_a_plain_loader_resumes_at_its_position(regression, pairs, tmp_path, caplog):
    """No batch is read again, and none is trained on twice."""

    def make():
        torch.manual_seed(0)
        net = torch.nn.Linear(4, 2)
        brain = regression(
            {"model": net},
            lambda p: torch.optim.SGD(p, lr=0.1),
            run_opts={"ckpt_interval_steps": 5, "device": "cpu", "recover_attributes": False},
            checkpointer=Checkpointer(tmp_path / "save", {"model": net}),
        )
        brain.seen = []
        brain.on_fit_batch_end = lambda batch, *_: brain.seen.append(batch[0].sum().item())
        return brain

    loader = torch.utils.data.DataLoader(pairs, batch_size=2)
    first = make()
    forward = first.compute_forward
    first.compute_forward = lambda b, s: 1 / 0 if first.step == 8 else forward(b, s)
    with pytest.raises(ZeroDivisionError):
        first.fit(range(1), loader)
    first.checkpointer.close()
    second = make()
    with caplog.at_level(logging.INFO):
        second.fit(range(1), loader)
    assert first.seen[:5] + second.seen == [x.sum().item() for x, _ in loader]
    assert "dataloader-TRAIN" in caplog.text
    assert "read again" not in caplog.text


def test_debug_mode_runs_a_few_batches_and_saves_no_checkpoint(job):
    """The folder of the real checkpoints is not changed."""
    brain = job("run", debug=True, debug_batches=2, debug_epochs=1)
    brain.train()
    assert len(brain.rows) == 2
    assert not (brain.hparams.train_logger.save_file.parent / "save").exists() or not list(
        (brain.hparams.train_logger.save_file.parent / "save").glob("CKPT*")
    )


def test_a_checkpoint_written_in_the_background_is_published_during_validation(job):
    """A run that is killed in a long validation does not repeat the training."""
    brain = job("run", asynchronous=True, ckpt_interval_steps=2)
    evaluate, newest = brain.evaluate_batch, []

    def look(batch, stage):
        newest.append(brain.checkpointer.find_checkpoint().path)
        for thread in threading.enumerate():
            if thread.name == "brain-ckpt-save":
                thread.join()
        return evaluate(batch, stage)

    brain.evaluate_batch = look
    brain.train()
    brain.close()
    assert newest[0] != newest[1] == newest[2]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_checkpoint_of_an_epochs_end_replaces_those_within_the_epoch(job, asynchronous):
    """`find_checkpoints` returns one checkpoint for each epoch."""
    run = job("averaged", ckpt_interval_steps=4, asynchronous=asynchronous)
    save = run.checkpointer.save_and_keep_only
    run.checkpointer.save_and_keep_only = lambda *args, **kwargs: save(
        *args, **{"num_to_keep": 5, **kwargs}
    )
    run.train()
    left = run.checkpointer.find_checkpoints()
    assert len(left) == 3
    assert all(checkpoint.meta["end-of-epoch"] for checkpoint in left)


class Opaque:
    """A class that the safe loader does not know."""


def test_an_unrestorable_state_is_refused_before_the_first_batch(regression, pairs, tmp_path):
    """The error contains the place and the type of the object."""

    class Stateful:
        def state_dict(self):
            return {"inner": [Opaque()]}

        def load_state_dict(self, state):
            pass

    brain = regression(
        {"model": torch.nn.Linear(4, 2)},
        lambda p: torch.optim.SGD(p, lr=0.1),
        checkpointer=Checkpointer(tmp_path, {"custom": Stateful()}),
    )
    with pytest.raises(CheckpointSaveError, match=r"custom\W.*inner.*Opaque"):
        brain.fit(range(1), pairs)
    assert brain.step == 0
