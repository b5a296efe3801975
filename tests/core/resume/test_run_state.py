"""The progress of a run, without a Brain."""

from __future__ import annotations

import logging

import pytest

from brain_core import RunOptions
from brain_core.resume.elastic import StepSize
from brain_core.resume.run_state import Progress, RunState


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


def test_a_run_inside_an_epoch_continues_in_that_epoch(saved):
    """The position, the counts and the running mean are restored in full precision."""
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
    """Only the number of optimizer steps is kept from the finished epoch."""
    run = make_run()
    run.begin_epoch(3)
    run.step, run.optimizer_step = 5, 25
    run.mean.add(1.0)
    again = saved(run, end_of_epoch=True)
    assert (again.step, again.optimizer_step, again.epoch) == (0, 25, 3)
    assert (again.resumes_epoch, again.mean.count) == (False, 0)


@pytest.mark.parametrize(("keeps", "average"), [(True, 9.0), (False, 1.0)])
def test_a_recipes_own_average_is_restored_only_if_it_is_used(tmp_path, keeps, average):
    """Without the recipe's own average, the mean of the losses is restored."""
    run = make_run()
    run.begin_epoch(1)
    run.mean.add(1.0)
    run.mean.assign(9.0)
    run.save(tmp_path / "brain.ckpt")
    again = make_run()
    again.keeps_average = keeps
    again.recover(tmp_path / "brain.ckpt", end_of_epoch=False)
    assert again.mean.mean() == average


def test_a_save_inside_a_window_warns_and_is_detected_when_restored(saved, caplog):
    """A warning states that the gradients of the window are not saved."""
    run = make_run(grad_accumulation_factor=3)
    run.begin_epoch(1)
    run.train_step.batches = 2
    with caplog.at_level(logging.WARNING):
        again = saved(run, end_of_epoch=False, grad_accumulation_factor=3)
    assert "does not hold the gradients of the window's first 2 batches" in caplog.text
    assert again.unfinished_window == 2


def test_a_nested_fit_has_its_own_counts_and_the_same_optimizer_steps():
    """A nested fit does not change the position of the outer fit."""
    run = make_run()
    run.step, run.optimizer_step = 4, 40
    nested = run.nested()
    nested.begin_epoch(0)
    assert (nested.step, nested.optimizer_step, run.step) == (0, 40, 4)


def test_speechbrains_progress_is_read():
    """SpeechBrain's mean loss is restored as the sum of as many losses."""
    progress = Progress.from_yaml("{step: 4, avg_train_loss: 0.5, optimizer_step: 8}")
    assert (progress.loss_total, progress.loss_count, progress.epoch) == (2.0, 4, None)
