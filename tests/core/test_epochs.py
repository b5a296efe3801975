"""Epoch counters: counting, saving, early stopping."""

from __future__ import annotations

import logging
import math

import pytest

from brain_ckpt import Checkpointer
from brain_core import EpochCounter, EpochCounterWithStopper


def run(counter, metrics):
    """Iterate over the epochs with one metric each; return the epochs."""
    entered = []
    for metric, epoch in zip(metrics, counter, strict=False):
        entered.append(epoch)
        counter.update_metric(metric)
    return entered


def test_a_counter_continues_after_the_finished_epoch(tmp_path):
    """After an end-of-epoch checkpoint, the next epoch begins."""
    counter = EpochCounter(3)
    next(counter)
    Checkpointer(tmp_path, {"counter": counter}).save_checkpoint()
    again = EpochCounter(3)
    Checkpointer(tmp_path, {"counter": again}).recover_if_possible()
    assert list(again) == [2, 3]


def test_a_counter_repeats_an_unfinished_epoch(tmp_path):
    """After a checkpoint within an epoch, that epoch is continued."""
    counter = EpochCounter(3)
    next(counter), next(counter)
    Checkpointer(tmp_path, {"counter": counter}).save_checkpoint(end_of_epoch=False)
    again = EpochCounter(3)
    Checkpointer(tmp_path, {"counter": again}).recover_if_possible()
    assert list(again) == [2, 3]


@pytest.mark.parametrize("direction", ["min", "max"])
@pytest.mark.parametrize("plateau", [0.5, -0.5, 0.0, 3e8])
def test_a_plateau_stops_training_in_both_directions(direction, plateau):
    """A plateau stops training; in SpeechBrain 1.1 it did not with "max" or a negative "min"."""
    counter = EpochCounterWithStopper(50, 3, 0, direction)
    assert run(counter, [plateau] * 50) == [1, 2, 3, 4]


@pytest.mark.parametrize(("direction", "sign"), [("min", -1), ("max", 1)])
def test_steady_improvement_does_not_stop_training(direction, sign):
    """Improvement is also detected if the metric changes its sign."""
    counter = EpochCounterWithStopper(20, 2, 0, direction)
    assert len(run(counter, [sign * (i - 10) for i in range(20)])) == 20


def test_warmup_epochs_are_ignored():
    """The patience starts after the warmup epochs."""
    assert run(EpochCounterWithStopper(10, 5, 2, "min"), [0] * 10) == list(range(1, 9))


def test_a_nan_metric_is_no_improvement():
    """A run whose metric is NaN stops."""
    assert run(EpochCounterWithStopper(10, 2, 0, "min"), [1.0] + [math.nan] * 9) == [1, 2, 3]


def test_early_stopping_is_saved_and_restored(tmp_path):
    """best_score and should_stop are saved; SpeechBrain 1.1 saved neither."""
    counter = EpochCounterWithStopper(20, 4, 0, "max")
    run(counter, [0.9, 0.5])
    Checkpointer(tmp_path, {"counter": counter}).save_checkpoint()
    again = EpochCounterWithStopper(20, 4, 0, "max")
    Checkpointer(tmp_path, {"counter": again}).recover_if_possible()
    assert (again.best_score, again.best_limit, again.current) == (0.9, 1, 2)
    assert run(again, [0.6] * 20) == [3, 4, 5]


def test_a_restored_counter_that_has_stopped_does_not_continue(tmp_path):
    """Restarting a run that has stopped early trains no epoch."""
    counter = EpochCounterWithStopper(20, 1, 0, "min")
    run(counter, [1.0] * 20)
    Checkpointer(tmp_path, {"counter": counter}).save_checkpoint()
    again = EpochCounterWithStopper(20, 1, 0, "min")
    Checkpointer(tmp_path, {"counter": again}).recover_if_possible()
    assert list(again) == []


def test_a_stopper_reads_a_checkpoint_of_speechbrain(tmp_path, caplog):
    """The epoch is read, and a warning states that the patience starts anew."""
    (tmp_path / "counter").write_text("4")
    counter = EpochCounterWithStopper(20, 1, 0, "min")
    with caplog.at_level(logging.WARNING):
        counter._recover(tmp_path / "counter", end_of_epoch=False)
    assert counter.current == 3
    assert "patience starts anew" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, -1, 0, "min"), "'limit_to_stop' must be >= 0, got -1"),
        ((5, 1, -2, "min"), "'limit_warmup' must be >= 0, got -2"),
        ((5, 1, 0, "up"), "'direction' must be 'min' or 'max', got 'up'"),
        ((-5, 1, 0, "min"), "a limit of 0 or more, got -5"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    """The error contains the required and the given value."""
    with pytest.raises(ValueError, match=message):
        EpochCounterWithStopper(*arguments)
