"""Epoch counters: counting, saving, stopping."""

from __future__ import annotations

import logging
import math

import pytest

from brain_ckpt import Checkpointer
from brain_core import EpochCounter, EpochCounterWithStopper


def run(counter, metrics):
    """Go through the epochs with one metric each; return those entered."""
    entered = []
    for metric, epoch in zip(metrics, counter, strict=False):
        entered.append(epoch)
        counter.update_metric(metric)
    return entered


def test_a_counter_goes_on_after_the_finished_epoch(tmp_path):
    """An end-of-epoch checkpoint is followed by the next epoch."""
    counter = EpochCounter(3)
    next(counter)
    Checkpointer(tmp_path, {"counter": counter}).save_checkpoint()
    again = EpochCounter(3)
    Checkpointer(tmp_path, {"counter": again}).recover_if_possible()
    assert list(again) == [2, 3]


def test_a_counter_enters_an_unfinished_epoch_again(tmp_path):
    """A checkpoint within an epoch leads back into it."""
    counter = EpochCounter(3)
    next(counter), next(counter)
    Checkpointer(tmp_path, {"counter": counter}).save_checkpoint(end_of_epoch=False)
    again = EpochCounter(3)
    Checkpointer(tmp_path, {"counter": again}).recover_if_possible()
    assert list(again) == [2, 3]


@pytest.mark.parametrize("direction", ["min", "max"])
@pytest.mark.parametrize("plateau", [0.5, -0.5, 0.0, 3e8])
def test_a_plateau_stops_training_in_both_directions(direction, plateau):
    """Reference row: with "max", or a negative "min", a plateau counted as improvement."""
    counter = EpochCounterWithStopper(50, 3, 0, direction)
    assert run(counter, [plateau] * 50) == [1, 2, 3, 4]


@pytest.mark.parametrize(("direction", "sign"), [("min", -1), ("max", 1)])
def test_steady_improvement_never_stops(direction, sign):
    """Across zero, too."""
    counter = EpochCounterWithStopper(20, 2, 0, direction)
    assert len(run(counter, [sign * (i - 10) for i in range(20)])) == 20


def test_warmup_epochs_are_not_looked_at():
    """Patience begins after them."""
    assert run(EpochCounterWithStopper(10, 5, 2, "min"), [0] * 10) == list(range(1, 9))


def test_a_metric_that_is_nan_is_no_improvement():
    """A diverged run stops."""
    assert run(EpochCounterWithStopper(10, 2, 0, "min"), [1.0] + [math.nan] * 9) == [1, 2, 3]


def test_early_stopping_is_saved_and_restored(tmp_path):
    """Reference row: best_score and should_stop were never saved."""
    counter = EpochCounterWithStopper(20, 4, 0, "max")
    run(counter, [0.9, 0.5])
    Checkpointer(tmp_path, {"counter": counter}).save_checkpoint()
    again = EpochCounterWithStopper(20, 4, 0, "max")
    Checkpointer(tmp_path, {"counter": again}).recover_if_possible()
    assert (again.best_score, again.best_limit, again.current) == (0.9, 1, 2)
    assert run(again, [0.6] * 20) == [3, 4, 5]


def test_a_run_that_has_stopped_stays_stopped(tmp_path):
    """Starting it again does not train on."""
    counter = EpochCounterWithStopper(20, 1, 0, "min")
    run(counter, [1.0] * 20)
    Checkpointer(tmp_path, {"counter": counter}).save_checkpoint()
    again = EpochCounterWithStopper(20, 1, 0, "min")
    Checkpointer(tmp_path, {"counter": again}).recover_if_possible()
    assert list(again) == []


def test_a_stopper_reads_the_plain_number_that_speechbrain_saved(tmp_path, caplog):
    """It says that patience starts anew."""
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
    """What is required, what was got."""
    with pytest.raises(ValueError, match=message):
        EpochCounterWithStopper(*arguments)
