"""The small parts of the loop, each by itself."""

from __future__ import annotations

import io
import math
import sys

import pytest
import torch

from brain_core.loop.batches import Batches
from brain_core.loop.progress_bar import ProgressBar, should_show
from brain_core.loop.running_mean import LossMean, nan_if_nonfinite
from brain_core.stopping.step_boundary import SaveSchedule, StepBoundary
from brain_dist import StopSignal


def test_asking_for_another_batch_loses_none():
    """has_next fetches, and what it fetched comes next."""
    batches = Batches([1, 2, 3])
    seen = [(batch, batches.has_next(), batches.has_next()) for batch in batches]
    assert seen == [(1, True, True), (2, True, True), (3, False, False)]


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 9])
def test_a_limit_looks_like_the_end_of_the_data(limit):
    """Debug mode's last window is short for the same reason as an epoch's."""
    batches = Batches(range(3), limit)
    assert batches.has_next() == (limit > 0)
    assert list(batches) == list(range(min(3, limit)))
    assert not batches.has_next()


def test_skipping_past_the_end_leaves_nothing():
    """A shorter loader than the one that was saved."""
    batches = Batches(range(3))
    batches.skip(5)
    assert list(batches) == []


def test_a_mean_takes_numbers_and_tensors_and_leaves_out_what_is_not_finite():
    """In double precision, whatever the loss's own."""
    mean = LossMean()
    for loss in (1.0, torch.tensor(2.0, dtype=torch.bfloat16), math.nan, torch.tensor([math.inf])):
        mean.add(loss)
    assert (mean.mean(), mean.count, LossMean().mean()) == (1.5, 2, 0.0)


def test_a_mean_of_losses_on_a_device_is_read_only_when_asked_for():
    """The device's losses are added up there; meta tensors would fail if they were read."""
    mean = LossMean(total=10.0, count=2)
    mean._add_on_device(torch.tensor(2.0))
    mean._add_on_device(torch.tensor(math.nan))
    assert mean._count == 2
    assert (mean.total, mean.count, mean.mean()) == (12.0, 3, 4.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_spoilt_loss_has_gradients_that_are_not_finite(value):
    """So that the all-reduce tells every rank."""
    weight = torch.tensor(2.0, requires_grad=True)
    nan_if_nonfinite(weight * 3.0 + value).backward()
    assert not torch.isfinite(weight.grad)


def test_a_finite_loss_is_not_touched():
    """Not even by a multiplication with one."""
    loss = torch.tensor(2.0, requires_grad=True)
    assert nan_if_nonfinite(loss) is loss


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
    boundary.data_ended(validates=True)
    assert saved == []


def test_the_end_of_the_data_is_saved_once():
    """Not again where the last batch was saved already."""
    schedule = SaveSchedule(minutes=0, steps=2)
    boundary, saved = make_boundary(schedule)
    schedule.steps_done += 2
    boundary.reached()
    boundary.data_ended(validates=True)
    assert len(saved) == 1
    schedule.steps_done += 1
    boundary.data_ended(validates=True)
    assert len(saved) == 2


def test_the_bar_shows_its_figures_and_its_rate(monkeypatch):
    """It reads them when it is drawn, not at every step."""
    asked = []
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with ProgressBar(
        enable=True,
        batches=range(500),
        colour="",
        figures=lambda: asked.append(1) or {"loss": 0.25},
    ) as bar:
        for _ in range(500):
            bar.step()
    text = sys.stderr.getvalue()
    assert "500/500" in text
    assert "it/s" in text
    assert "loss=0.25" in text
    assert 0 < len(asked) < 50


def test_a_bar_that_is_off_asks_for_nothing():
    """Its figures are not read, since nobody sees them."""
    asked = []
    with ProgressBar(enable=False, batches=[], colour="", figures=lambda: asked.append(1)) as bar:
        bar.step()
    assert asked == []


@pytest.mark.parametrize(
    ("asked", "forbidden", "terminal", "shown"),
    [
        (None, False, True, True),
        (None, False, False, False),
        (None, True, True, False),
        (True, True, False, True),
        (False, False, True, False),
    ],
)
def test_bars_are_shown_as_asked_or_on_a_terminal(monkeypatch, asked, forbidden, terminal, shown):
    """A log file gets none."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert should_show(asked, forbidden=forbidden) is shown
