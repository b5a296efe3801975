"""Files that are not in the manifest of a checkpoint."""

import pytest
import torch

from brain_ckpt import Checkpointer, RNGState


@pytest.fixture
def saved(tmp_path):
    """Save a checkpoint; return its checkpointer and its path."""
    checkpointer = Checkpointer(tmp_path, {"model": torch.nn.Linear(2, 1)})
    return checkpointer, checkpointer.save_checkpoint({"loss": 1.0}).path


@pytest.mark.parametrize("name", ["x.ckpt", "notes.txt", "shards/.metadata", "ranks/0/rng.pt"])
def test_a_foreign_file_is_no_damage(name, saved, caplog):
    """The newest checkpoint is recovered, with and without a key."""
    checkpointer, path = saved
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(b"anything")
    assert checkpointer.recover_if_possible().path == path
    assert checkpointer.recover_if_possible(min_key="loss").path == path
    assert "damaged" not in caplog.text


def test_a_foreign_state_file_is_not_a_recoverable(saved):
    """Nothing is loaded from it."""
    checkpointer, path = saved
    torch.save({"weight": torch.zeros(2)}, path / "other.ckpt")
    assert set(checkpointer.find_checkpoint().paramfiles) == {"model"}
    checkpointer.add_recoverable("other", torch.nn.Linear(2, 1), optional_load=True)
    checkpointer.recover_if_possible()


def test_a_foreign_file_of_a_rank_is_not_loaded(saved):
    """The rank keeps its state."""
    checkpointer, path = saved
    (path / "ranks" / "0").mkdir(parents=True)
    (path / "ranks" / "0" / "rng.pt").write_bytes(b"anything")
    checkpointer.add_recoverable("rng", RNGState(), per_rank=True)
    torch.manual_seed(5)
    checkpointer.recover_if_possible()
    assert torch.initial_seed() == 5


def test_a_foreign_file_is_deleted_with_its_checkpoint(saved):
    """Nothing is left of the directory."""
    checkpointer, path = saved
    (path / "notes").mkdir()
    (path / "notes" / "a.txt").write_text("x")
    checkpointer.save_and_keep_only()
    assert not path.exists()


def test_a_file_in_the_place_of_a_checkpoint_is_ignored(saved, tmp_path):
    """Such as a copy or an archive whose name begins with CKPT."""
    checkpointer, path = saved
    (tmp_path / "CKPT+backup.tar").write_bytes(b"anything")
    assert checkpointer.find_checkpoint().path == path
