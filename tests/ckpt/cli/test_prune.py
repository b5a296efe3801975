"""The command's deletion: what stays, and that it is what was shown."""

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
    """Four checkpoints; the first one is the best, the second has a NaN."""
    checkpointer = Checkpointer(tmp_path / "save", {"model": torch.nn.Linear(1, 1)})
    for name, loss in zip(NAMES, LOSSES, strict=True):
        checkpointer.save_checkpoint({"loss": loss}, name=name)
    checkpointer.close()
    return tmp_path / "save"


def left(save):
    """Return the names of the checkpoints that are there."""
    return sorted(path.name.removeprefix("CKPT+") for path in save.glob("CKPT+*"))


def newest_damaged(save):
    """Flip a bit in the newest one."""
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
def test_what_a_dry_run_shows_is_what_goes(policies, kept, save, capsys):
    """Each policy adds to what stays; a NaN is never the best."""
    code = main(["prune", str(save), *policies.split(), "--dry-run", "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert (code, left(save)) == (0, NAMES)
    assert shown["dry_run"] is True
    assert main(["prune", str(save), *policies.split(), "--json"]) == 0
    gone = json.loads(capsys.readouterr().out)
    assert gone == {**shown, "dry_run": False}
    assert left(save) == list(kept)
    assert sorted(shown["kept"]) == [f"CKPT+{name}" for name in kept]


def test_nothing_is_deleted_without_a_policy(save, capsys):
    """Which would keep nothing."""
    assert main(["prune", str(save)]) == 2
    assert "--keep-last 3" in capsys.readouterr().err
    assert left(save) == NAMES


def test_a_metric_that_nobody_has_is_an_error(save, capsys):
    """It would keep nothing, too."""
    assert main(["prune", str(save), "--keep-best", "los:min"]) == 2
    assert "got 'los'; they have loss" in capsys.readouterr().err
    assert left(save) == NAMES


def test_a_damaged_checkpoint_pushes_no_intact_one_out(save, capsys):
    """It stays where it is, and what counts is the newest intact one."""
    newest_damaged(save)
    assert main(["prune", str(save), "--keep-last", "1"]) == 0
    assert left(save) == ["c", "d"]
    assert "left alone CKPT+d, which is damaged: model.ckpt" in capsys.readouterr().out


def test_a_directory_that_a_run_writes_to_is_left_alone(save, capsys):
    """The run prunes its own; a dry run is welcome to look."""
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
        assert "one run at a time writes to" in capsys.readouterr().err
    finally:
        os.write(done[1], b"x")
        os.waitpid(child, 0)
        for end in (*ready, *done):
            os.close(end)
    assert left(save) == [*NAMES, "e"]


def test_a_checkpoint_is_not_a_directory_of_them(save, capsys):
    """Nothing inside one is deleted, and no lock is left in it."""
    assert main(["prune", str(save / "CKPT+a"), "--keep-last", "1"]) == 2
    assert f"name '{save}'" in capsys.readouterr().err
    assert not (save / "CKPT+a" / ".brain.lock").exists()


def test_a_kill_while_pruning_leaves_whole_checkpoints(save, workloads):
    """Each goes by a rename, and the rest of it with the next save."""

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
