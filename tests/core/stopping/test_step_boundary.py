"""Step boundaries: when a checkpoint is saved."""

from __future__ import annotations

from brain_core.stopping.step_boundary import SaveSchedule, StepBoundary
from brain_dist import StopSignal


def make_boundary(schedule, stop=None):
    """Return a step boundary and the list of its saves."""
    saved = []
    return StepBoundary(schedule, stop or StopSignal(), lambda: saved.append(1), int), saved


def test_a_checkpoint_is_saved_after_the_interval_in_batches():
    """The count restarts with each checkpoint."""
    schedule = SaveSchedule(minutes=0, steps=3)
    boundary, saved = make_boundary(schedule)
    history = []
    for _ in range(7):
        schedule.steps_done += 1
        boundary.reached()
        history.append(len(saved))
    assert history == [0, 0, 1, 1, 1, 2, 2]


def test_a_checkpoint_is_saved_after_the_interval_in_minutes(monkeypatch):
    """The interval is measured by the monotonic clock."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    boundary, saved = make_boundary(SaveSchedule(minutes=0.5, steps=0))
    boundary.reached()
    now[0] += 31
    boundary.reached()
    boundary.reached()
    assert len(saved) == 1


def test_without_an_interval_nothing_is_saved():
    """Without an interval, the end of the data is not saved either."""
    schedule = SaveSchedule(minutes=0, steps=0)
    boundary, saved = make_boundary(schedule)
    schedule.steps_done += 1
    boundary.reached()
    boundary.data_ended()
    assert saved == []


def test_the_end_of_the_data_is_saved_once():
    """The end of the data is not saved if the last batch was."""
    schedule = SaveSchedule(minutes=0, steps=2)
    boundary, saved = make_boundary(schedule)
    schedule.steps_done += 2
    boundary.reached()
    boundary.data_ended()
    assert len(saved) == 1
    schedule.steps_done += 1
    boundary.data_ended()
    assert len(saved) == 2
