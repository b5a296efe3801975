"""Names of checkpoints that are made from the time."""

import pytest
import torch

from brain_ckpt import Checkpointer, CheckpointSaveError


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


def test_a_name_is_not_used_again_by_another_process(tmp_path, processes):
    """Although nothing is left of the first one's checkpoints, and both run in one second."""

    def save_and_delete(report):
        checkpointer = Checkpointer(tmp_path, {"model": torch.nn.Linear(1, 1)})
        report(int(checkpointer.save_checkpoint().path.name[-2:]))
        checkpointer.save_checkpoint(name="mine")
        checkpointer.delete_checkpoints(num_to_keep=0)

    children = [processes.Child(save_and_delete)]
    assert children[0].wait() == processes.FINISHED
    children.append(processes.Child(save_and_delete))
    assert children[1].wait() == processes.FINISHED
    assert [child.reports for child in children] == [[0], [1]]
    assert names(tmp_path) == []


def test_a_name_is_not_used_again_after_a_failed_save(checkpointer, tmp_path, workloads):
    """It was noted before it was used."""

    def fail(operation, path, detail):
        if operation == "rename":
            raise OSError(5, "I/O error", path)

    with workloads.failpoint(fail), pytest.raises(CheckpointSaveError):
        checkpointer.save_checkpoint()
    checkpointer.save_checkpoint()
    assert names(tmp_path) == ["01"]


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"last_save": [1]}', b'{"host": "a"}garbage'])
def test_a_lock_file_of_any_content_is_no_error(content, tmp_path):
    """A process can be killed while it writes the file."""
    (tmp_path / ".brain.lock").write_bytes(content)
    Checkpointer(tmp_path, {"model": torch.nn.Linear(1, 1)}).save_checkpoint()
    assert names(tmp_path) == ["00"]


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
