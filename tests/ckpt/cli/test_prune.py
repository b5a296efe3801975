"""The command ``brain-ckpt prune``."""

import json
import os

import pytest
import torch

from brain_ckpt import Checkpointer
from brain_ckpt.cli.main import main

NAMES = ["a", "b", "c", "d"]
LOSSES = [0.1, float("nan"), 0.3, 0.2]


@pytest.fixture
def save(tmp_path):
    """Save four checkpoints; the first one is the best, the second has a NaN."""
    checkpointer = Checkpointer(tmp_path / "save", {"model": torch.nn.Linear(1, 1)})
    for name, loss in zip(NAMES, LOSSES, strict=True):
        checkpointer.save_checkpoint({"loss": loss}, name=name)
    checkpointer.close()
    return tmp_path / "save"


def left(save):
    """Return the names of the existing checkpoints."""
    return sorted(path.name.removeprefix("CKPT+") for path in save.glob("CKPT+*"))


def newest_damaged(save):
    """Flip a bit in the newest checkpoint."""
    file = save / "CKPT+d" / "model.ckpt"
    content = bytearray(file.read_bytes())
    content[-100] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("policies", "kept"),
    [
        ("--keep-last 2", "cd"),
        ("--keep-best loss:min", "a"),
        ("--keep-best loss:max:2 --keep-last 1", "cd"),
        ("--keep-best loss:min:1 --keep-last 1", "ad"),
        ("--pin b --pin c", "bc"),
        ("--daily", "a"),
        ("--hourly --keep-last 1", "ad"),
        ("--budget 1", "d"),
        ("--budget 1G", "abcd"),
    ],
)
def test_prune_deletes_what_its_dry_run_showed(policies, kept, save, capsys):
    """Policies add up, and a NaN is never the best."""
    code = main(["prune", str(save), *policies.split(), "--dry-run", "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert (code, left(save)) == (0, NAMES)
    assert shown["dry_run"] is True
    assert main(["prune", str(save), *policies.split(), "--json"]) == 0
    gone = json.loads(capsys.readouterr().out)
    assert gone == {**shown, "dry_run": False}
    assert left(save) == list(kept)
    assert sorted(shown["kept"]) == [f"CKPT+{name}" for name in kept]


def test_prune_without_a_policy_deletes_nothing(save, capsys):
    """No policy would keep nothing."""
    assert main(["prune", str(save)]) == 2
    assert "--keep-last 3" in capsys.readouterr().err
    assert left(save) == NAMES


def test_an_unknown_metric_is_an_error(save, capsys):
    """An unknown metric would keep nothing."""
    assert main(["prune", str(save), "--keep-best", "los:min"]) == 2
    assert "got 'los'; they have loss" in capsys.readouterr().err
    assert left(save) == NAMES


def test_a_damaged_checkpoint_displaces_no_intact_one(save, capsys):
    """The damaged checkpoint is skipped, and the newest intact one is kept."""
    newest_damaged(save)
    assert main(["prune", str(save), "--keep-last", "1"]) == 0
    assert left(save) == ["c", "d"]
    assert "skipped CKPT+d, which is damaged: model.ckpt" in capsys.readouterr().out


def test_prune_refuses_a_directory_that_a_run_writes_to(save, capsys):
    """A dry run is allowed."""
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            checkpointer = Checkpointer(save, {"model": torch.nn.Linear(1, 1)})
            checkpointer.save_checkpoint(name="e")
            os.write(ready[1], b"x")
            os.read(done[0], 1)
        finally:
            os._exit(0)
    try:
        assert os.read(ready[0], 1) == b"x"
        assert main(["prune", str(save), "--keep-last", "1", "--dry-run"]) == 0
        capsys.readouterr()
        assert main(["prune", str(save), "--keep-last", "1"]) == 2
        assert "only one run may write to" in capsys.readouterr().err
    finally:
        os.write(done[1], b"x")
        os.waitpid(child, 0)
        for end in (*ready, *done):
            os.close(end)
    assert left(save) == [*NAMES, "e"]


def test_prune_refuses_the_directory_of_one_checkpoint(save, capsys):
    """Nothing inside the checkpoint is deleted, and no lock file is left in it."""
    assert main(["prune", str(save / "CKPT+a"), "--keep-last", "1"]) == 2
    assert f"name '{save}'" in capsys.readouterr().err
    assert not (save / "CKPT+a" / ".brain.lock").exists()


def test_a_kill_during_prune_leaves_complete_checkpoints(save, workloads):
    """A checkpoint is renamed before it is removed, and the next save removes the rest."""

    class Killed(BaseException):
        pass

    def kill(operation, path, detail):
        if operation == "unlink":
            raise Killed

    with workloads.failpoint(kill), pytest.raises(Killed):
        main(["prune", str(save), "--keep-last", "1"])
    assert left(save) == ["d"]
    assert main(["verify", str(save)]) == 0
    assert list(save.glob(".trash-*"))
    checkpointer = Checkpointer(save, {"model": torch.nn.Linear(1, 1)})
    checkpointer.save_checkpoint()
    checkpointer.close()
    assert not list(save.glob(".trash-*"))
