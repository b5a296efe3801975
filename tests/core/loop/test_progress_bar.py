"""The progress bar."""

from __future__ import annotations

import io
import sys

import pytest

from brain_core.loop.progress_bar import ProgressBar, should_show


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
