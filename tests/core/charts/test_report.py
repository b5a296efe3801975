"""The page and the picture of a run, and the command `brain-report`."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from brain_core import Report
from brain_core.charts.history import history_of, read_history
from brain_core.charts.main import main
from brain_core.charts.page import report_as_html
from brain_core.charts.panels import format_number, panels_of, thin, ticks

ROWS = [
    {"kind": "start", "time": 0.0, "step": 0, "epoch": None, "is_resumed": False, "total_steps": 9},
    {"kind": "steps", "time": 1.0, "step": 2, "epoch": 1, "loss": 4.0, "lr": 0.1},
    {"kind": "steps", "time": 2.0, "step": 4, "epoch": 1, "loss": float("nan"), "lr": 0.05},
    {"kind": "checkpoint", "time": 2.5, "step": 4, "epoch": 1},
    {"kind": "start", "time": 9.0, "step": 4, "epoch": 1, "is_resumed": True, "repeated_steps": 3},
    {"kind": "stage", "time": 10.0, "step": 4, "epoch": 1, "stage": "VALID", "loss": 3.0, "wer": 7},
    {"kind": "stage", "time": 10.0, "step": 4, "epoch": 1, "stage": "TRAIN", "loss": 3.5, "lr": 9},
]


def write(folder, rows=ROWS):
    """Write a history into a directory."""
    folder.mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "history.jsonl").write_text(text + '{"kind": "steps", "cut o')
    return folder


def test_a_history_is_read_without_a_line_that_a_kill_has_cut_off(tmp_path):
    """And without values that are not finite."""
    history = read_history(write(tmp_path / "run"))
    assert history.name == "run"
    assert history.figures()["loss"] == {
        "steps": [(2, 4.0)],
        "VALID": [(4, 3.0)],
        "TRAIN": [(4, 3.5)],
    }
    assert [row["repeated_steps"] for row in history.restarts] == [3]


def test_panels_are_the_loss_then_metrics_then_the_rest():
    """Each has the marks of restarts and checkpoints; the rate is drawn by step only."""
    panels = panels_of([history_of(ROWS, "run")])
    assert [panel.title for panel in panels] == ["loss", "wer", "learning rate"]
    assert [curve.label for curve in panels[0].curves] == ["train, steps", "valid", "train"]
    assert [curve.source for curve in panels[2].curves] == ["steps"]
    assert (panels[0].restarts, panels[0].checkpoints) == ([(0, 4)], [(0, 4)])


@pytest.mark.parametrize("skipped", [0, 2])
def test_skipped_steps_have_a_panel_only_if_there_are_any(skipped):
    """The table has the number in either case."""
    row = {"kind": "steps", "time": 1.0, "step": 2, "epoch": 1, "skipped_steps": skipped}
    titles = [panel.title for panel in panels_of([history_of([row], "run")])]
    assert titles == (["steps skipped"] if skipped else [])


class Page(HTMLParser):
    """Checks that tags are closed, and collects the addresses that a page loads."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loads = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "path", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("path", "circle"):
            assert self.open.pop() == tag


def test_the_page_of_two_runs_needs_no_other_file():
    """Names are escaped; the table has a row for each run."""
    text = report_as_html([history_of(ROWS, "a<b"), history_of(ROWS, "other")])
    page = Page(text)
    assert page.loads == []
    assert "http" not in text
    assert "a&lt;b" in text
    assert "a<b" not in text
    assert len(re.findall("<tr>", text)) == 3
    assert text.count("<svg viewBox") > 3
    assert "nan" not in re.sub(r"[A-Za-z]nan|nan[a-z]", "", text)


def test_a_page_without_figures_says_so():
    """As at the very beginning of a run."""
    assert "No figures yet." in report_as_html([history_of(ROWS[:1], "new")])


def test_the_command_writes_a_page_of_several_runs(tmp_path, capsys):
    """And a picture where matplotlib is installed; names tell equal last parts apart."""
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    runs = [str(write(tmp_path / parent / "run")) for parent in "xy"]
    assert main([*runs, "--output", str(tmp_path / "both")]) == 0
    text = (tmp_path / "both" / "report.html").read_text()
    assert "x/run" in text
    assert "y/run" in text
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("report.html")
    for path in printed[1:]:
        with open(path, "rb") as file:
            assert file.read(4) == b"\x89PNG"


def test_the_command_names_what_is_missing(tmp_path, capsys):
    """And how it comes about."""
    assert main([str(tmp_path)]) == 2
    assert "callbacks=[Report(output_folder)]" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (1234, "1234"), (56789, "56.8k")])
def test_numbers_are_short(value, text):
    """At most six characters."""
    assert format_number(value) == text


def test_ticks_are_round_and_inside():
    """For small, large and equal ends."""
    assert ticks(0.0, 0.003) == [0.0, 0.001, 0.002, 0.003]
    assert ticks(-1.0, 1.0) == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert ticks(2.0, 2.0) == [2.0]
    assert all(3 <= len(ticks(0.0, 10.0**n)) <= 6 for n in range(-6, 9))


def test_long_curves_are_thinned():
    """To means of neighbours; the ends stay near."""
    points = thin([(float(x), 1.0) for x in range(10_000)])
    assert 500 < len(points) <= 600
    assert points[0][0] < 20
    assert points[-1][0] > 9980


def test_every_steps_must_be_positive(tmp_path):
    """Named with what was given."""
    with pytest.raises(ValueError, match="every_steps of 1 or more, got 0"):
        Report(tmp_path, every_steps=0)
