"""The notebook runs from its first cell to its last, and has the outputs of today's code."""

from __future__ import annotations

import contextlib
import io
import json
import re

import pytest
import torch
from pages import ROOT

from brain_core.callbacks import run_report

NOTEBOOK = json.loads((ROOT / "examples/notebook.ipynb").read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
FRACTION = re.compile(r"\d+\.\d+")


def stored(cell):
    """Return what a cell printed when it was last saved."""
    return "".join(line for output in cell["outputs"] for line in output.get("text", ()))


def test_the_cells_run_in_order_and_print_what_is_stored(tmp_path, monkeypatch):
    """A run stops, resumes and ends with equal weights, and its curve lies on the other one."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    monkeypatch.chdir(tmp_path)
    shown = []
    monkeypatch.setattr(run_report, "find_spec", lambda name: None)  # no curves.png: it takes long
    monkeypatch.setattr(pyplot, "show", lambda: shown.append(pyplot.gca().get_lines()))
    names = {"__name__": "__main__"}
    with torch.random.fork_rng(devices=[]):
        for cell in CODE:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec("".join(cell["source"]), names)
            assert FRACTION.sub("#", printed.getvalue()) == FRACTION.sub("#", stored(cell))
    pyplot.close("all")
    ((whole, resumed, _),) = shown
    assert len(whole.get_ydata()) == 64
    assert list(resumed.get_ydata()) == list(whole.get_ydata())


def test_the_notebook_was_saved_after_its_cells_ran_in_order():
    """A reader who does not run it sees its outputs, and no cell that was run twice."""
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert "equal: True" in "".join(map(stored, CODE))
    assert "image/png" in CODE[-1]["outputs"][-1]["data"]
