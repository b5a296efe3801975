"""The program that kills runs finds no difference, unless a piece of state is not restored."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OF_CALLBACKS = {"average", "early-stopping", "schedule", "gradient-norms", "table", "json-lines"}

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="watches through pidfd_open")


@pytest.fixture
def chaos(tmp_path):
    """Return a function that runs chaos and returns the finished process."""

    def run(*arguments):
        command = [sys.executable, "-m", "chaos", "--results", str(tmp_path), *arguments]
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False
        )

    return run


@pytest.fixture
def journal(monkeypatch):
    """Return the module that compares the records of runs."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("chaos._journal")


def test_killed_runs_end_as_the_undisturbed_one(chaos, tmp_path):
    """With callbacks and without; in the long run a chain of kills; the report has the counts."""
    long_run = bool(os.environ.get("BRAIN_CHAOS"))
    ranks = "1,2" if long_run else "1"
    chain = ("--chain", "1") if long_run else ()
    options = ("--ranks", ranks, "--seed", "3789", "--jobs", "2")
    done = chaos("--kills", "2", *chain, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    counts = report["counts"]
    for name in ("samples lost", "samples repeated", "starts that could not resume"):
        assert counts[name] == "0"
    assert {case["config"]["callbacks"] for case in report["cases"]} == {False, True}
    kills = sum(len(case["kills"]) for case in report["cases"])
    assert counts["kills"] == str(kills)
    assert kills >= (3 if long_run else 2)
    if long_run:
        assert counts["chain on 2 ranks"] == "1 kills in a row, bit-equal"
    assert "inside a save" in (tmp_path / "table.md").read_text()
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / "kills.png").stat().st_size > 10_000


@pytest.mark.long
@pytest.mark.parametrize(
    ("piece", "message"),
    [
        ("numpy-rng", ": loss is"),
        ("python-rng", ": loss is"),
        ("torch-rng", ": loss is|took samples"),  # the order of a shuffled DataLoader, too
        # one batch too far: the rows of the next one, or no batch at the end of the data
        ("position-on", "took samples|in place of"),
        ("position-back", "took samples|in place of"),
        # the log has the rate after an epoch, also where no step of it is left
        ("optimizer", r"(learning rate\[\d\]|optimizer\.\S+|weight|bias|log\.txt) is"),
        ("scheduler", "undisturbed"),
        ("epoch", "in place of|undisturbed"),
        ("newest-checkpoint", "had been acknowledged"),
        # evaluated with another average, or trained on with it
        ("average", r"VALID batch .*: loss is|EMA\.\S+ is"),
        ("early-stopping", r"early stopping\.\S+ is|after the undisturbed run's end"),
        ("schedule", r"(learning rate\[\d\]|schedule\.done|log\.txt) is"),
        ("gradient-norms", r"the end of TRAIN .*: figures\.(grad_norm|skipped)\S* is"),
        ("text-log", r"at the end, rank 0: log\.txt is"),
        ("table", r"at the end, rank 0: log\.csv is"),
        ("json-lines", r"at the end, rank 0: log\.jsonl is"),
    ],
)
def test_a_piece_of_state_that_is_not_restored_is_noticed(chaos, piece, message):
    """The report says what differed first, and how to repeat the case."""
    only = ("--callbacks",) if piece in OF_CALLBACKS else ()
    done = chaos("--without", piece, "--kills", "100", "--failures", "1", "--ranks", "1", *only)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(message, done.stdout), done.stdout
    assert "again: nox -s chaos -- --seed" in done.stdout


def test_lost_and_repeated_samples_are_counted(journal):
    """Each row must be taken once per epoch, in any order."""
    records = [["TRAIN", 1, 1, [0, 2], {}], ["TRAIN", 1, 2, [2], {}], ["VALID", 1, 1, [1], {}]]
    assert journal.lost_and_repeated(records, rows=3, epochs=1) == (1, 1)
    assert journal.lost_and_repeated([["TRAIN", 1, 1, [2, 0, 1], {}]], 3, 1) == (0, 0)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (["TRAIN", 1, 2, [3], {"loss": "0x1.8p+0"}], "loss is 1.5, undisturbed 1.0"),
        (["TRAIN", 1, 2, [4], {"loss": "0x1.0p+0"}], "took samples [4] in place of [3]"),
        (["TRAIN", 1, 3, [3], {}], "TRAIN batch 3 of epoch 1 was done in place of TRAIN batch 2"),
    ],
)
def test_the_first_difference_is_named(journal, record, message):
    """The message has the batch, the figure and both values."""
    expected = [["TRAIN", 1, 1, [1], {}], ["TRAIN", 1, 2, [3], {"loss": "0x1.0p+0"}]]
    assert journal.first_difference(expected, expected) is None
    assert message in journal.first_difference([expected[0], record], expected)


def test_a_line_that_a_kill_cut_off_is_not_read(journal, tmp_path):
    """The lines before it are."""
    path = tmp_path / "journal"
    written = journal.Journal(path)
    written.resumed("CKPT+1", 7)
    written.add(["VALID", 1, 1, [], {}])
    with path.open("a") as file:
        file.write('["VALID", 1')
    found = journal.read(path)
    assert (found.checkpoint, found.began, len(found.records)) == ("CKPT+1", 7, 1)
