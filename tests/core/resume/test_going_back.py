"""`--resume_from`: going back to an older checkpoint, once."""

from __future__ import annotations

import logging

import pytest
import torch

from brain_ckpt import Checkpointer
from brain_ckpt.storage import filesystem
from brain_core import Brain, EpochCounter


class Killed(BaseException):
    """Stands for SIGKILL."""


class Saving(Brain):
    """Keeps all checkpoints: one after each epoch of four batches."""

    def compute_forward(self, batch, stage):
        return self.modules.model(batch)

    def compute_objectives(self, predictions, batch, stage):
        return predictions.square().mean()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        self.checkpointer.save_checkpoint(meta={"loss": stage_loss}, name=f"epoch{epoch}")


def train(rank, folder, epochs, resume_from=None, **options):
    """Train up to an epoch; return the first step that was trained, and the weights."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    brain = Saving(
        {"model": model},
        lambda ps: torch.optim.AdamW(ps, lr=0.1),
        run_opts={"device": "cpu", "resume_from": resume_from, **options},
        checkpointer=Checkpointer(folder),
    )
    first = []
    fit_batch = brain.fit_batch
    brain.fit_batch = lambda batch: (first.append(brain.optimizer_step), fit_batch(batch))[1]
    data = torch.arange(16.0).reshape(8, 2)
    loading = {"batch_size": 2, "shuffle": True}
    brain.fit(EpochCounter(epochs), data, train_loader_kwargs=loading)
    brain.checkpointer.close()
    return first[0] if first else None, brain.raw_modules.model.weight.tolist()


def names(folder):
    """Return the names of the checkpoints that a recovery finds, and of those set aside."""
    found = sorted(c.path.name for c in Checkpointer(folder).list_checkpoints())
    aside = folder / "set_aside"
    return found, sorted(p.name for p in aside.glob("CKPT*")) if aside.exists() else []


@pytest.mark.parametrize("request_", ["CKPT+epoch2", "step:8", "epoch:2"])
def test_the_run_goes_back_and_ends_as_if_it_had_never_gone_further(tmp_path, request_):
    """What was newer lies in set_aside, complete."""
    _, undisturbed = train(0, tmp_path / "other", 3)
    train(0, tmp_path / "save", 4)
    first, weights = train(0, tmp_path / "save", 3, request_)
    assert first == 8
    assert weights == undisturbed
    found, aside = names(tmp_path / "save")
    assert found == ["CKPT+epoch1", "CKPT+epoch2", "CKPT+epoch3"]
    assert aside == ["CKPT+epoch3", "CKPT+epoch4"]
    moved = Checkpointer(tmp_path / "save" / "set_aside", {"model": torch.nn.Linear(2, 1)})
    assert moved.recover_if_possible().path.name == "CKPT+epoch4"


def test_the_same_command_line_goes_back_once(tmp_path, caplog):
    """Started again after a preemption, it resumes from the newest checkpoint."""
    train(0, tmp_path, 4)
    train(0, tmp_path, 3, "epoch:2")
    with caplog.at_level(logging.INFO):
        first, _ = train(0, tmp_path, 5, "epoch:2")
    assert first == 12
    assert "To go back once more, delete that file" in caplog.text


@pytest.mark.parametrize("operation", range(1, 8))
def test_a_kill_at_any_moment_changes_nothing(tmp_path, monkeypatch, operation):
    """The next start completes it."""
    train(0, tmp_path / "save", 4)
    expected = train(0, tmp_path / "other", 3)
    count = 0

    def killed(name, path, detail):
        nonlocal count
        count += name in ("rename", "mkdir", "fsync_directory") and "set_aside" in f"{path}{detail}"
        if count == operation:
            raise Killed

    monkeypatch.setattr(filesystem, "failpoint", killed)
    try:
        train(0, tmp_path / "save", 3, "epoch:2")
    except Killed:
        monkeypatch.setattr(filesystem, "failpoint", None)
        train(0, tmp_path / "save", 3, "epoch:2")
    found, aside = names(tmp_path / "save")
    assert aside == ["CKPT+epoch3", "CKPT+epoch4"]
    assert found == ["CKPT+epoch1", "CKPT+epoch2", "CKPT+epoch3"]
    assert train(0, tmp_path / "save", 3, "epoch:2")[1] == expected[1]


def test_a_checkpoint_that_does_not_exist_is_an_error_that_lists_those_that_do(tmp_path):
    """Nothing is moved."""
    train(0, tmp_path, 2)
    with pytest.raises(ValueError, match=r"got 'epoch:7'.*CKPT\+epoch1 \(step:4, epoch:1\)"):
        train(0, tmp_path, 3, "epoch:7")
    assert names(tmp_path) == (["CKPT+epoch1", "CKPT+epoch2"], [])


def test_all_ranks_go_back(ranks, tmp_path):
    """Rank 0 moves, and every rank resumes from the chosen checkpoint."""
    ranks(train, 2, tmp_path, 4)
    results = ranks(train, 2, tmp_path, 3, "step:2")
    assert [first for first, _ in results] == [2, 2]
    assert results[0] == results[1]
    assert names(tmp_path)[1] == ["CKPT+epoch2", "CKPT+epoch3", "CKPT+epoch4"]
