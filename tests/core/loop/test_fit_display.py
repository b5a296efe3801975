"""What a fit shows in the terminal beside its bars."""

from __future__ import annotations

import io
import re
import sys

import pytest
import torch

from brain_core import Brain, EpochCounter
from brain_core.loop.fit_display import FitDisplay, epoch_line, time_left
from brain_core.stage import Stage

DATA = torch.utils.data.TensorDataset(torch.randn(12, 2), torch.randn(12, 1))


class Line(Brain):
    """Fits a line."""

    def compute_forward(self, batch, stage):
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        return torch.nn.functional.mse_loss(predictions, batch[1])


def shown_by(monkeypatch, epochs, valid_set=DATA, progressbar=True, kind=Line, **options):
    """Return what a fit writes to the terminal, in lines."""
    brain = kind(
        {"model": torch.nn.Linear(2, 1)},
        lambda parameters: torch.optim.SGD(parameters, lr=0.125),
        run_opts={"device": "cpu", **options},
    )
    monkeypatch.setenv("COLUMNS", "200")  # a bar is cut at the width of the terminal
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    loading = {"batch_size": 4}
    brain.fit(epochs, DATA, valid_set, progressbar, loading, loading)
    return re.split(r"[\r\n]+", sys.stderr.getvalue())


def test_the_bar_shows_loss_rate_and_time_left_over_all_epochs(monkeypatch):
    """Of the epoch it is in, numbered, and of the whole fit."""
    lines = shown_by(monkeypatch, EpochCounter(2), progressbar=None)
    bar = re.compile(
        r"epoch 1/2: +\d+%\|.*\| [1-3]/3 \[.*, .*(it/s|s/it), train_loss=[\d.]+, lr=1\.25e-01, "
        r"left=\d\d:\d\d\]"
    )
    assert any(bar.search(line) for line in lines)
    assert any(re.search(r"epoch 2/2, valid: .*, loss=[\d.]+, left=00:00\]", x) for x in lines)


def test_an_epoch_ends_with_one_line(monkeypatch):
    """Epoch, losses and time; the bars are gone from the screen."""
    lines = shown_by(monkeypatch, EpochCounter(2))
    ends = [line for line in lines if " time " in line]
    form = r"epoch {}/2   train loss [\d.]+ +valid loss [\d.]+ +time \d\d:\d\d"
    assert [bool(re.fullmatch(form.format(n), line)) for n, line in zip((1, 2), ends, strict=True)]
    assert ends[0].index("valid") == ends[1].index("valid")


def test_without_validation_the_line_has_the_training_alone(monkeypatch):
    """Epochs that are not counted from 1 have their number only."""
    lines = shown_by(monkeypatch, range(2), valid_set=None)
    ends = [re.sub(r"[\d.]+ +time \d\d:\d\d", "#", line) for line in lines if " time " in line]
    assert ends == ["epoch 0   train loss #", "epoch 1   train loss #"]


@pytest.mark.parametrize("given", [{"progressbar": False}, {"noprogressbar": True}])
def test_without_a_bar_nothing_is_shown(monkeypatch, given):
    """An option or an argument switches all of it off."""
    given = {"progressbar": None, **given}
    assert shown_by(monkeypatch, EpochCounter(2), **given) == [""]


class OwnSteps(Line):
    """Takes its steps itself, which nobody counts."""

    def fit_batch(self, batch):
        loss = self.compute_objectives(self.compute_forward(batch, Stage.TRAIN), batch, Stage.TRAIN)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def test_the_time_left_is_not_shown_where_steps_are_not_counted(monkeypatch):
    """A `fit_batch` of one's own may take no counted step."""
    lines = shown_by(monkeypatch, EpochCounter(2), kind=OwnSteps)
    assert any("train_loss=" in line for line in lines)
    assert not any("left=" in line for line in lines)


def test_a_resumed_fit_is_estimated_by_the_steps_of_this_process():
    """Steps of the processes before took other seconds."""
    assert time_left(30.0, first=900, done=910, total=1000) == 270.0
    assert time_left(30.0, first=900, done=1000, total=1000) == 0.0
    assert time_left(30.0, first=900, done=1010, total=1000) == 0.0
    assert time_left(30.0, first=900, done=910, total=None) is None


def test_numbers_of_epochs_are_aligned():
    """Also where the total has more digits."""
    begun = [9]
    display = FitDisplay(
        total_steps=None, total_epochs=10, steps_done=lambda: 0, epochs_begun=lambda: begun[0]
    )
    assert display.name_of(9) == "epoch  9/10"
    assert display.name_of(7) == "epoch 7"
    begun[0] = 10
    assert display.name_of(10) == "epoch 10/10"
    short, long = (
        epoch_line("epoch 1", {Stage.TRAIN: loss, Stage.VALID: 1.0}, "00:01")
        for loss in (2.0, -1.2345678e-10)
    )
    assert short.index("valid") == long.index("valid")
