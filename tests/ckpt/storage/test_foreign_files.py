"""Files that are not in the manifest of a checkpoint."""

import pytest
import torch

from brain_ckpt import Checkpointer, RNGState
from brain_ckpt.cli.main import main
from brain_ckpt.errors import UsageError
from brain_ckpt.loading.contents import choose_file
from brain_ckpt.storage.opened import open_checkpoint


@pytest.fixture
def saved(tmp_path):
    """Save a checkpoint; return its checkpointer and its path."""
    checkpointer = Checkpointer(tmp_path, {"model": torch.nn.Linear(2, 1)})
    return checkpointer, checkpointer.save_checkpoint({"loss": 1.0}).path


@pytest.mark.parametrize(
    "name",
    [
        "x.ckpt",
        "notes.txt",
        ".DS_Store",
        ".model.ckpt.swp",
        ".nfs0001",
        "shards/.metadata",
        "ranks/0/rng.pt",
    ],
)
def test_a_foreign_file_is_no_damage(name, saved, caplog):
    """The newest checkpoint is recovered, with and without a key."""
    checkpointer, path = saved
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(b"anything")
    assert checkpointer.recover_if_possible().path == path
    assert checkpointer.recover_if_possible(min_key="loss").path == path
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("name", [".DS_Store", ".model.ckpt.swp", ".nfs0001", "model.ckpt~"])
def test_a_file_that_appears_during_a_save_is_no_part_of_it(name, tmp_path, capsys):
    """It can go again, as those of NFS do; until then `verify` notes it."""

    def save(obj, path):
        torch.save(obj.state_dict(), path)
        (path.parent / name).write_bytes(b"anything")

    model = torch.nn.Linear(2, 1)
    checkpointer = Checkpointer(tmp_path, {"model": model}, custom_save_hooks={"model": save})
    path = checkpointer.save_checkpoint().path
    assert main(["verify", str(path)]) == 0
    assert "not part of the checkpoint" in capsys.readouterr().out
    (path / name).unlink()
    assert checkpointer.recover_if_possible().path == path


def test_a_foreign_file_is_not_exported(saved, tmp_path):
    """A copy of the tensors holds those of the recoverables only."""
    _, path = saved
    torch.save({"weight": torch.zeros(2)}, path / "x.ckpt")
    with open_checkpoint(path) as opened, pytest.raises(UsageError, match=r"it holds model\.ckpt"):
        choose_file(opened, "x")


def test_a_foreign_file_in_a_checkpoint_of_speechbrain_is_no_damage(tmp_path):
    """It has no manifest, so only the files of the recoverables are compared."""
    path = tmp_path / "CKPT+2026-01-01+00-00-00+00"
    path.mkdir()
    model = torch.nn.Linear(2, 1)
    torch.save(model.state_dict(), path / "model.ckpt")
    (path / "CKPT.yaml").write_text("end-of-epoch: true\nunixtime: 1767225600.0\n")
    (path / "x.ckpt").write_bytes(b"")
    checkpointer = Checkpointer(tmp_path, {"model": model})
    assert checkpointer.recover_if_possible().path == path


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
