"""The progress bar."""

from __future__ import annotations

import io
import sys

import pytest

from brain_core.loop.progress_bar import BarOptions, ProgressBar, should_show


def test_the_bar_shows_its_figures_and_its_rate(monkeypatch):
    """The figures are read when the bar is drawn, not at every step."""
    reads = []
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with ProgressBar(
        BarOptions(enable=True, title="epoch 3/10", figures=lambda: {"left": "00:07"}),
        batches=range(500),
        figures=lambda: reads.append(1) or {"loss": 0.25},
    ) as bar:
        for _ in range(500):
            bar.step()
    text = sys.stderr.getvalue()
    assert "500/500" in text
    assert "it/s" in text
    assert "loss=0.25, left=00:07" in text
    assert "epoch 3/10:" in text
    assert 0 < len(reads) < 50


def test_a_disabled_bar_reads_no_figures():
    """The figures of a disabled bar are never read."""
    reads = []
    with ProgressBar(BarOptions(), batches=[], figures=lambda: reads.append(1)) as bar:
        bar.step()
    assert reads == []


@pytest.mark.parametrize(
    ("requested", "forbidden", "terminal", "shown"),
    [
        (None, False, True, True),
        (None, False, False, False),
        (None, True, True, False),
        (True, True, False, True),
        (False, False, True, False),
    ],
)
def test_bars_are_shown_if_requested_or_on_a_terminal(
    monkeypatch, requested, forbidden, terminal, shown
):
    """By default a bar is shown on a terminal only."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert should_show(requested, forbidden=forbidden) is shown
