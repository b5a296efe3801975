"""Checkpoints on a file system that does not rename a directory in one step."""

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
    """Neither to publish, nor to replace, nor to delete."""

    def saves():
        for number in (1, 2, 3):
            run.set(number)
            run.checkpointer.save_and_keep_only(name="last" if number > 1 else None)

    renamed = {path for operation, path in operations_of(workloads, saves) if operation == "rename"}
    assert {path.rpartition("/")[2] for path in renamed} == {".CKPT.yaml.part"}
    assert there(fast_dir) == ["CKPT+last"]
    assert workloads.Run(fast_dir).recover() == 3


def test_the_manifest_is_written_last(workloads, run):
    """What comes after it are the confirmation, and the removal of the mark."""
    done = operations_of(workloads, run.checkpointer.save_checkpoint)
    created = [path.rpartition("/")[2] for operation, path in done if operation == "create"]
    assert created[0] == ".unfinished"
    assert created[-2:] == [".CKPT.yaml.part", "MANIFEST.json"]


def test_the_manifest_goes_first_and_its_going_is_confirmed(workloads, run, fast_dir):
    """A disk that forgets it, and not what goes after it, would leave half a checkpoint."""
    run.checkpointer.save_checkpoint()
    done = operations_of(workloads, lambda: run.checkpointer.delete_checkpoints(num_to_keep=0))
    removed = [number for number, (operation, _) in enumerate(done) if operation == "unlink"]
    first = next(number for number in removed if done[number][1].endswith("/MANIFEST.json"))
    assert [done[n][1].rpartition("/")[2] for n in removed if n < first] in ([], [".unfinished"])
    assert done[first + 1] == ("fsync_directory", done[first][1].removesuffix("/MANIFEST.json"))
    assert there(fast_dir) == []


def test_one_that_is_being_written_is_not_listed(workloads, run, fast_dir):
    """Nor taken for a damaged one; another run's is swept by the next save."""
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
    """And what it left is not listed meanwhile."""
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


def test_a_full_disk_leaves_what_was_there(workloads, run, fast_dir):
    """The checkpoint of the same name too, which was not touched yet."""
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


def test_the_command_prunes_without_renaming(workloads, run, fast_dir, capsys):
    """With the option of the same name."""
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


def test_asynchronous_saves_appear_by_their_manifest(workloads, fast_dir):
    """At the poll, as a rename would be."""
    run = workloads.Run(fast_dir, atomic_rename=False, asynchronous=True)
    run.set(4)
    run.checkpointer.save_checkpoint()
    run.checkpointer._writer._pending.join()
    assert run.checkpointer.list_checkpoints() == []
    run.checkpointer.close()
    assert workloads.Run(fast_dir).recover() == 4
