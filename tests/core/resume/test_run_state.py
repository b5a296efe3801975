"""The progress of a run by itself, without a Brain."""

from __future__ import annotations

import logging
import random

import pytest
import torch

from brain_core import RunOptions
from brain_core.loop.running_mean import LossMean
from brain_core.resume.elastic import StepSize
from brain_core.resume.run_state import Progress, RankState, RunState


def make_run(**options):
    """Return the state of a run in one process."""
    options = RunOptions(**options)
    return RunState(StepSize(1, options.grad_accumulation_factor), options)


@pytest.fixture
def saved(tmp_path):
    """Return a function that saves a run and restores it into a new one."""

    def restore(run, *, end_of_epoch, **options):
        run.save(tmp_path / "brain.ckpt")
        other = make_run(**options)
        other.recover(tmp_path / "brain.ckpt", end_of_epoch)
        return other

    return restore


def test_a_run_inside_an_epoch_continues_there(saved):
    """Position, counts and the running mean in full precision."""
    run = make_run()
    run.begin_epoch(3)
    run.step, run.optimizer_step, run.nonfinite_count = 5, 25, 1
    for loss in (0.1, 0.2, 0.3):
        run.mean.add(loss)
    again = saved(run, end_of_epoch=False)
    assert (again.step, again.optimizer_step, again.nonfinite_count) == (5, 25, 1)
    assert (again.epoch, again.epochs_begun, again.resumes_epoch) == (3, 1, True)
    assert again.mean.total == run.mean.total
    again.begin_epoch(3)
    assert again.step == 5
    again.begin_epoch(4)
    assert (again.step, again.mean.count) == (0, 0)


def test_a_run_at_an_epochs_end_begins_the_next_one(saved):
    """Nothing of the epoch is left but the number of steps."""
    run = make_run()
    run.begin_epoch(3)
    run.step, run.optimizer_step = 5, 25
    run.mean.add(1.0)
    again = saved(run, end_of_epoch=True)
    assert (again.step, again.optimizer_step, again.epoch) == (0, 25, 3)
    assert (again.resumes_epoch, again.mean.count) == (False, 0)


@pytest.mark.parametrize(("keeps", "average"), [(True, 9.0), (False, 1.0)])
def test_a_recipes_own_average_is_restored_only_where_it_keeps_one(tmp_path, keeps, average):
    """Otherwise the mean is computed from the losses."""
    run = make_run()
    run.begin_epoch(1)
    run.mean.add(1.0)
    run.mean.assign(9.0)
    run.save(tmp_path / "brain.ckpt")
    again = make_run()
    again.keeps_average = keeps
    again.recover(tmp_path / "brain.ckpt", end_of_epoch=False)
    assert again.mean.mean() == average


def test_a_save_inside_a_window_warns_and_says_so_when_it_is_restored(saved, caplog):
    """The gradients of the window are not saved."""
    run = make_run(grad_accumulation_factor=3)
    run.begin_epoch(1)
    run.train_step.batches = 2
    with caplog.at_level(logging.WARNING):
        again = saved(run, end_of_epoch=False, grad_accumulation_factor=3)
    assert "does not hold the gradients of the window's first 2 batches" in caplog.text
    assert again.unfinished_window == 2


def test_a_nested_fit_has_counts_of_its_own_and_the_same_optimizer_steps():
    """The outer fit's position must not move."""
    run = make_run()
    run.step, run.optimizer_step = 4, 40
    nested = run.nested()
    nested.begin_epoch(0)
    assert (nested.step, nested.optimizer_step, run.step) == (0, 40, 4)


def test_speechbrains_progress_is_read():
    """Its mean stands for the losses that it does not hold."""
    progress = Progress.from_yaml("{step: 4, avg_train_loss: 0.5, optimizer_step: 8}")
    assert (progress.loss_total, progress.loss_count, progress.epoch) == (2.0, 4, None)


def test_generators_are_restored_when_they_are_asked_for_and_once():
    """Making a loader's iterator draws in between."""
    run = make_run()
    state = run.rank_state.state_dict()
    drawn = (random.random(), torch.rand(1).item())
    other = RankState(lambda: run.mean)
    other.load_state_dict(state)
    assert other.holds_rng
    random.random()
    other.restore_rng()
    assert (random.random(), torch.rand(1).item()) == drawn
    assert not other.holds_rng
    other.restore_rng()
    assert random.random() != drawn[0]


def test_a_changed_environment_is_told():
    """By name, with what it was and what it is."""
    here = {"torch": "2.13.0"}
    state = RankState(LossMean, lambda: dict(here))
    saved = state.state_dict()
    here["torch"] = "2.14.0"
    state.load_state_dict(saved)
    assert state.changed_environment() == ["torch 2.13.0 -> 2.14.0"]
