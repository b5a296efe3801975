"""What released versions wrote can be read for ever: a folder for each, made by ``training.py``."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch

from brain_ckpt import Checkpointer
from brain_ckpt.cli.main import main as brain_ckpt

HERE = Path(__file__).parent
VERSIONS = sorted(path.name for path in HERE.iterdir() if (path / "expected.json").exists())


@pytest.fixture(scope="module")
def training():
    """Give the module that trains."""
    spec = importlib.util.spec_from_file_location("released_training", HERE / "training.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=VERSIONS)
def stopped(request, tmp_path):
    """Give a copy of the run that a version has stopped."""
    return shutil.copytree(HERE / request.param / "stopped", tmp_path / request.param)


def test_there_is_a_folder_of_the_first_version():
    assert "0.1.0" in VERSIONS


def test_a_stopped_run_resumes_as_it_would_have_gone_on(stopped, training):
    """Same rows, losses, random numbers, weights, log and checkpoints, from within an epoch."""
    expected = json.loads((HERE / stopped.name / "expected.json").read_text(encoding="utf-8"))
    done = training.summary(training.train(stopped), stopped)
    for key in ("log", "checkpoints_kept"):
        assert done[key] == expected[key]
    assert [batch[0] for batch in done["batches"]] == [batch[0] for batch in expected["batches"]]
    # Another torch than that of the release may round the last digit otherwise.
    for now, then in zip(done["batches"], expected["batches"], strict=True):
        assert now[1:] == pytest.approx(then[1:], rel=1e-12)
    assert done["weights"] == pytest.approx(expected["weights"], rel=1e-12)


def test_its_checkpoints_are_intact(stopped, capsys):
    """The command finds no damage, and lists them."""
    assert brain_ckpt(["verify", str(stopped / "save")]) == 0
    assert brain_ckpt(["ls", str(stopped / "save")]) == 0
    assert (
        len(list((stopped / "save").glob("CKPT+*"))) == capsys.readouterr().out.count("step 6") + 1
    )


def test_its_best_checkpoint_is_found(stopped):
    model = torch.nn.Linear(1, 1, dtype=torch.float64)
    before = model.weight.item()
    checkpointer = Checkpointer(stopped / "save", {"model": model}, allow_partial_load=True)
    found = checkpointer.recover_if_possible(min_key="loss")
    assert found.meta["loss"] > 0
    assert model.weight.item() != before
