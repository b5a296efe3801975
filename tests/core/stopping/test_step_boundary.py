"""Step boundaries: when a checkpoint is saved."""

from __future__ import annotations

from brain_core.stopping.step_boundary import SaveSchedule, StepBoundary
from brain_dist import StopSignal


def make_boundary(schedule, stop=None):
    """Make a step boundary that notes its saves."""
    saved = []
    return StepBoundary(schedule, stop or StopSignal(), lambda: saved.append(1), int), saved


def test_a_checkpoint_is_due_after_the_number_of_batches():
    """And the count begins anew with each."""
    schedule = SaveSchedule(minutes=0, steps=3)
    boundary, saved = make_boundary(schedule)
    history = []
    for _ in range(7):
        schedule.steps_done += 1
        boundary.reached()
        history.append(len(saved))
    assert history == [0, 0, 1, 1, 1, 2, 2]


def test_a_checkpoint_is_due_after_the_minutes(monkeypatch):
    """By a clock that is not set back."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    boundary, saved = make_boundary(SaveSchedule(minutes=0.5, steps=0))
    boundary.reached()
    now[0] += 31
    boundary.reached()
    boundary.reached()
    assert len(saved) == 1


def test_without_an_interval_nothing_is_saved():
    """Not at the end of the data either."""
    schedule = SaveSchedule(minutes=0, steps=0)
    boundary, saved = make_boundary(schedule)
    schedule.steps_done += 1
    boundary.reached()
    boundary.data_ended()
    assert saved == []


def test_the_end_of_the_data_is_saved_once():
    """Not again where the last batch was saved already."""
    schedule = SaveSchedule(minutes=0, steps=2)
    boundary, saved = make_boundary(schedule)
    schedule.steps_done += 2
    boundary.reached()
    boundary.data_ended()
    assert len(saved) == 1
    schedule.steps_done += 1
    boundary.data_ended()
    assert len(saved) == 2
