"""A run that is saved, stopped, killed and gone on with."""

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

from brain_ckpt import Checkpointer
from brain_core import (
    EpochCounter,
    EpochCounterWithStopper,
    FileTrainLogger,
    Stage,
    TrainingStopped,
)


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the loop may catch it."""


class Rows(torch.utils.data.Dataset):
    """Rows with an augmentation drawn from all three libraries."""

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
    """Return a function that makes a run, which kills itself where it is told to."""

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
            # The count of events is the test's own, and begins with each start.
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


def ends_with(whole, part):
    """Whether a list ends with another one, which may be empty."""
    return whole[len(whole) - len(part) :] == part


@pytest.mark.parametrize(
    "run_opts",
    [
        {"ckpt_interval_steps": 2},
        {"ckpt_interval_steps": 1, "grad_accumulation_factor": 4},
        {"ckpt_interval_steps": 3, "precision": "bf16"},
        {"ckpt_interval_steps": 0},
    ],
    ids=["every two", "accumulating", "bf16", "epochs only"],
)
def test_a_run_killed_at_every_batch_continues_bit_for_bit(job, run_opts):
    """Weights, batches, means and the text log are those of the run that nobody disturbed."""
    whole = job("whole", **run_opts)
    whole.train()
    log = (whole.checkpointer.checkpoints_dir.parent / "log.txt").read_text()
    for kill_at in range(1, whole.events, 5):
        name = f"killed-{kill_at}"
        first = job(name, kill_at=kill_at, **run_opts)
        with pytest.raises(Killed):
            first.train()
        first.close()
        second = job(name, **run_opts)
        second.train()
        second.close()
        assert torch.equal(weights(second), weights(whole)), kill_at
        assert ends_with(whole.rows, second.rows), kill_at
        assert ends_with(whole.means, second.means), kill_at
        assert (second.checkpointer.checkpoints_dir.parent / "log.txt").read_text() == log


def test_saves_in_the_background_are_all_there_when_fit_returns(job):
    """The last one is waited for, and a run that goes on from one is bit-equal."""
    whole = job("whole", asynchronous=True, ckpt_interval_steps=4)
    whole.train()
    assert whole.checkpointer.find_checkpoint().meta["loss"] == whole.means[-1][2]
    first = job("run", asynchronous=True, kill_at=15, ckpt_interval_steps=4)
    with pytest.raises(Killed):
        first.train()
    first.close()
    second = job("run", asynchronous=True, ckpt_interval_steps=4)
    second.train()
    assert torch.equal(weights(second), weights(whole))


def test_a_run_killed_again_and_again_continues_bit_for_bit(job):
    """Also while it validates, and with other workers each time."""
    options = {"ckpt_interval_steps": 2, "grad_accumulation_factor": 3}
    whole = job("whole", **options)
    whole.train()
    for start in itertools.count():
        brain = job("killed", kill_at=4 + start % 3, workers=start % 3, **options)
        try:
            brain.train()
        except Killed:
            brain.close()
            continue
        break
    assert start > 5
    assert torch.equal(weights(brain), weights(whole))


def test_a_kill_in_validation_does_not_redo_the_epochs_training(job):
    """With an interval set, the end of the training data is saved before validation begins."""
    first = job("run", kill_at=9, ckpt_interval_steps=4)  # 6 batches, the stage's end, validation
    with pytest.raises(Killed):
        first.train()
    first.close()
    second = job("run", ckpt_interval_steps=4)
    second.train()
    assert len(second.rows) == 2 * 6
    assert [(s.name, e) for s, e, _ in second.means][:2] == [("TRAIN", 1), ("VALID", 1)]


def test_a_resumed_run_says_where_it_goes_on(job, caplog):
    """One line with checkpoint, epoch and step."""
    first = job("run", kill_at=6, ckpt_interval_steps=2)
    with pytest.raises(Killed):
        first.train()
    first.close()
    with caplog.at_level(logging.INFO):
        job("run", ckpt_interval_steps=2).train()
    assert "epoch 1, batch 4, optimizer step 4" in caplog.text


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_at_the_windows_border_and_leaves_with_code_75(job, name):
    """A wrapper tells that from a failure, and what follows is bit-equal."""
    whole = job("whole", grad_accumulation_factor=3)
    whole.train()
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
    assert torch.equal(weights(second), weights(whole))


def test_a_signal_in_validation_leaves_at_once_when_the_training_is_saved(job):
    """Nothing is left to save."""
    brain = job("run", ckpt_interval_steps=5)
    evaluate = brain.evaluate_batch

    def stopping(batch, stage):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(batch, stage)

    brain.evaluate_batch = stopping
    with pytest.raises(TrainingStopped):
        brain.train()
    assert [stage.name for stage, _, _ in brain.means] == ["TRAIN"]


def test_stop_can_be_called_by_the_recipe(job):
    """The reason is kept."""
    brain = job("run")
    brain.on_fit_batch_start = lambda *_: brain.stop("good enough")
    with pytest.raises(TrainingStopped, match="good enough"):
        brain.train()
    assert len(brain.rows) == 1


def test_evaluate_after_a_checkpoint_within_an_epoch_returns_its_own_mean(
    regression, pairs, tmp_path
):
    """Reference row: it divided by the training's step, and rolled the training back."""
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
    """A script that only tests makes none."""
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
    """Reference row: step and average of the old epoch went into the new one."""

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


def test_plain_epochs_that_are_done_are_not_done_again(job, pairs):
    """fit(range(3)) goes on in the epoch where it was."""
    arguments = (range(3), Rows(pairs), Rows(pairs))
    kwargs = {"train_loader_kwargs": {"batch_size": 4, "shuffle": True}}
    whole = job("whole")
    whole.fit(*arguments, **kwargs)
    first = job("run", kill_at=40)
    with pytest.raises(Killed):
        first.fit(*arguments, **kwargs)
    first.close()
    second = job("run")
    second.fit(*arguments, **kwargs)
    assert torch.equal(weights(second), weights(whole))
    assert {epoch for _, epoch, _ in second.means} == {1, 2}


def test_early_stopping_goes_on_after_a_restart(regression, pairs, tmp_path):
    """A plateau ends the run in the epoch in which it would have ended undisturbed."""

    def run(limit):
        net = torch.nn.Linear(4, 2)
        counter = EpochCounterWithStopper(limit, 3, 0, "min")

        class Flat(regression):
            def on_stage_end(self, stage, stage_loss, epoch=None):
                counter.update_metric(1.0)
                self.checkpointer.save_checkpoint()

        checkpointer = Checkpointer(tmp_path, {"model": net, "counter": counter})
        Flat({"model": net}, checkpointer=checkpointer).fit(counter, pairs)
        checkpointer.close()
        return counter.current

    assert run(2) == 2
    assert run(50) == 4


def test_an_optimizer_step_limit_ends_training(job):
    """At once, also after a restart."""
    brain = job("run", optimizer_step_limit=8, ckpt_interval_steps=8)
    brain.train()
    assert (brain.optimizer_step, len(brain.rows)) == (8, 8)
    brain.close()
    again = job("run", optimizer_step_limit=8, ckpt_interval_steps=8)
    again.train()
    assert len(again.rows) == 0


def test_a_loader_that_cannot_seek_is_read_up_to_its_position(regression, pairs, tmp_path, caplog):
    """It says so, and no batch is trained on twice."""

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
    assert "its first 5 batches are read again" in caplog.text


def test_debug_mode_runs_a_few_batches_and_saves_nowhere(job):
    """Few epochs as well, and the real checkpoints stay untouched."""
    brain = job("run", debug=True, debug_batches=2, debug_epochs=1)
    brain.train()
    assert len(brain.rows) == 2
    assert not (brain.hparams.train_logger.save_file.parent / "save").exists() or not list(
        (brain.hparams.train_logger.save_file.parent / "save").glob("CKPT*")
    )


def test_a_checkpoint_written_in_the_background_is_published_during_validation(job):
    """Else a run killed in a long validation would train again what was written before it."""
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
def test_no_checkpoint_within_an_epoch_is_left_beside_that_of_its_end(job, asynchronous):
    """A recipe that averages what `find_checkpoints` gives gets each epoch's weights once."""
    run = job("averaged", ckpt_interval_steps=4, asynchronous=asynchronous)
    save = run.checkpointer.save_and_keep_only
    run.checkpointer.save_and_keep_only = lambda *args, **kwargs: save(
        *args, **{"num_to_keep": 5, **kwargs}
    )
    run.train()
    left = run.checkpointer.find_checkpoints()
    assert len(left) == 3
    assert all(checkpoint.meta["end-of-epoch"] for checkpoint in left)
