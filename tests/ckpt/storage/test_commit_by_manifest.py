"""Checkpoints on a file system that does not rename directories atomically."""

import pytest
import torch

from brain_ckpt import Checkpointer, CheckpointSaveError
from brain_ckpt.cli.main import main


@pytest.fixture
def run(workloads, fast_dir):
    return workloads.Run(fast_dir, atomic_rename=False)


def there(directory):
    return sorted(path.name for path in directory.iterdir() if path.name != ".brain.lock")


def operations_of(workloads, action):
    done = []
    with workloads.failpoint(lambda operation, path, detail: done.append((operation, path))):
        action()
    return done


def test_no_directory_is_renamed(workloads, run, fast_dir):
    """Publishing, replacing and deleting rename files only."""

    def saves():
        for number in (1, 2, 3):
            run.set(number)
            run.checkpointer.save_and_keep_only(name="last" if number > 1 else None)

    renamed = {path for operation, path in operations_of(workloads, saves) if operation == "rename"}
    assert {path.rpartition("/")[2] for path in renamed} == {".CKPT.yaml.part"}
    assert there(fast_dir) == ["CKPT+last"]
    assert workloads.Run(fast_dir).recover() == 3


def test_the_manifest_is_written_last(workloads, run):
    """Only the flush and the removal of the mark come after it."""
    done = operations_of(workloads, run.checkpointer.save_checkpoint)
    created = [path.rpartition("/")[2] for operation, path in done if operation == "create"]
    assert created[0] == ".unfinished"
    assert created[-2:] == [".CKPT.yaml.part", "MANIFEST.json"]


def test_a_deletion_removes_the_manifest_first_and_flushes_it(workloads, run, fast_dir):
    """Without the flush a power loss could leave half a checkpoint."""
    run.checkpointer.save_checkpoint()
    done = operations_of(workloads, lambda: run.checkpointer.delete_checkpoints(num_to_keep=0))
    removed = [number for number, (operation, _) in enumerate(done) if operation == "unlink"]
    first = next(number for number in removed if done[number][1].endswith("/MANIFEST.json"))
    assert [done[n][1].rpartition("/")[2] for n in removed if n < first] in ([], [".unfinished"])
    assert done[first + 1] == ("fsync_directory", done[first][1].removesuffix("/MANIFEST.json"))
    assert there(fast_dir) == []


def test_an_unfinished_checkpoint_is_not_listed(workloads, run, fast_dir):
    """It is not reported as damaged, either."""
    run.set(1)
    run.checkpointer.save_checkpoint()
    seen = []

    def look(operation, path, detail):
        if operation == "create" and path.endswith("MANIFEST.json"):
            with workloads.failpoint(None):
                reader = Checkpointer(fast_dir, {"model": torch.nn.Linear(3, 2)})
                seen.append((reader.list_checkpoints(), reader._reader.listing().unreadable))
            raise KeyboardInterrupt

    run.set(2)
    with workloads.failpoint(look), pytest.raises(KeyboardInterrupt):
        run.checkpointer.save_checkpoint()
    [(listed, unreadable)] = seen
    assert [one.path.name for one in listed] == there(fast_dir)
    assert unreadable == {}


def test_an_interrupted_deletion_is_finished_by_the_next_save(workloads, run, fast_dir):
    """The rest of the checkpoint is not listed in between."""
    run.set(1)
    run.checkpointer.save_checkpoint()

    def point(operation, path, detail):
        if operation == "unlink" and path.endswith("model.ckpt"):
            raise OSError(5, "I/O error", path)

    run.set(2)
    with workloads.failpoint(point):
        run.checkpointer.save_and_keep_only()
    assert len(there(fast_dir)) == 2
    assert len(run.checkpointer.list_checkpoints()) == 1
    assert run.recover() == 2
    run.set(3)
    run.checkpointer.save_and_keep_only()
    assert len(there(fast_dir)) == 1
    assert workloads.Run(fast_dir).recover() == 3


def test_a_full_disk_leaves_the_replaced_checkpoint(workloads, run, fast_dir):
    """The checkpoint of the same name is not changed before the new one is written."""
    run.set(1)
    run.checkpointer.save_checkpoint(name="last")

    def point(operation, path, detail):
        if operation == "write" and path.endswith("optimizer.ckpt"):
            raise OSError(28, "No space left on device", path)

    run.set(2)
    with workloads.failpoint(point), pytest.raises(CheckpointSaveError, match="No space left"):
        run.checkpointer.save_checkpoint(name="last")
    assert there(fast_dir) == ["CKPT+last"]
    assert run.recover() == 1


def test_prune_can_work_without_renaming(workloads, run, fast_dir, capsys):
    """The option has the name of the argument."""
    for number in (1, 2, 3):
        run.set(number)
        run.checkpointer.save_checkpoint()
    run.checkpointer.close()
    command = ["prune", str(fast_dir), "--keep-last", "1", "--no-atomic-rename"]
    done = operations_of(workloads, lambda: main(command))
    assert "rename" not in {operation for operation, _ in done}
    assert len(there(fast_dir)) == 1
    assert workloads.Run(fast_dir).recover() == 3
    capsys.readouterr()


def test_asynchronous_saves_are_published_by_their_manifest(workloads, fast_dir):
    """They are published by `poll` or `close`."""
    run = workloads.Run(fast_dir, atomic_rename=False, asynchronous=True)
    run.set(4)
    run.checkpointer.save_checkpoint()
    run.checkpointer._writer._pending.join()
    assert run.checkpointer.list_checkpoints() == []
    run.checkpointer.close()
    assert workloads.Run(fast_dir).recover() == 4
