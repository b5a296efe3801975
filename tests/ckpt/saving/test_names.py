"""Names of checkpoints that are made from the time."""

import pytest
import torch

from brain_ckpt import Checkpointer


@pytest.fixture(autouse=True)
def frozen_clock(monkeypatch):
    """Stop the clock, so that all saves are in one second."""
    monkeypatch.setattr("brain_ckpt.saving.plan.time.time", lambda: 1_800_000_000.0)


@pytest.fixture
def checkpointer(tmp_path):
    return Checkpointer(tmp_path, {"model": torch.nn.Linear(1, 1)})


def names(tmp_path):
    return [path.name[-2:] for path in sorted(tmp_path.glob("CKPT*"))]


def test_a_name_is_not_used_again_after_a_deletion(checkpointer, tmp_path):
    """Numbers grow within a second, also if the older checkpoints are gone."""
    seen = []
    for _ in range(4):
        checkpointer.save_and_keep_only()
        seen += names(tmp_path)
    assert seen == ["00", "01", "02", "03"]


def test_a_name_is_not_used_again_after_all_are_deleted(checkpointer, tmp_path):
    """The run remembers its last name."""
    checkpointer.save_checkpoint()
    checkpointer.delete_checkpoints(num_to_keep=0)
    checkpointer.save_checkpoint()
    assert names(tmp_path) == ["01"]


def test_a_name_is_not_used_again_by_another_run(checkpointer, tmp_path):
    """It continues after the newest checkpoint."""
    checkpointer.save_checkpoint()
    checkpointer.save_and_keep_only()
    checkpointer.close()
    Checkpointer(tmp_path, {"model": torch.nn.Linear(1, 1)}).save_checkpoint()
    assert names(tmp_path) == ["01", "02"]


def test_a_name_is_not_used_again_if_the_clock_is_set_back(checkpointer, tmp_path, monkeypatch):
    """Names follow the times of checkpoints, which never decrease."""
    first = checkpointer.save_checkpoint().path.name
    monkeypatch.setattr("brain_ckpt.saving.plan.time.time", lambda: 1_700_000_000.0)
    second = checkpointer.save_checkpoint().path.name
    assert second == first[:-2] + "01"


def test_a_name_of_the_user_is_used_again(checkpointer, tmp_path):
    """The checkpoint of this name is replaced."""
    for loss in (1.0, 0.5):
        checkpointer.save_checkpoint({"loss": loss}, name="best")
    assert [one.meta["loss"] for one in checkpointer.list_checkpoints()] == [0.5]
