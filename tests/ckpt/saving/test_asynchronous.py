"""A save that is written while training goes on."""

import errno
import subprocess
import sys
import threading
import time

import pytest
import torch

from brain_ckpt import Checkpointer, CheckpointSaveError
from brain_ckpt.saving.buffers import SnapshotBuffers


@pytest.fixture
def gate(workloads):
    """Holds the writer back at its first write until it is opened."""
    opened = threading.Event()
    main = threading.main_thread()

    def point(operation, path, detail):
        if operation == "write" and threading.current_thread() is not main:
            assert opened.wait(30)

    with workloads.failpoint(point):
        yield opened
        opened.set()


def published(directory):
    return sorted(path.name for path in directory.glob("CKPT*"))


def test_the_state_of_the_moment_is_saved(tmp_path, workloads, gate):
    """Whatever training does to it while it is written."""
    run = workloads.Run(tmp_path, asynchronous=True)
    run.set(5)
    run.checkpointer.save_checkpoint()
    run.set(6)
    gate.set()
    run.checkpointer.close()
    assert workloads.Run(tmp_path).recover() == 5


def test_it_is_published_at_the_first_poll_after_it_is_written(tmp_path, workloads, gate):
    """Not before, and by the thread that trains."""
    run = workloads.Run(tmp_path, asynchronous=True)
    run.checkpointer.save_checkpoint()
    run.checkpointer.poll()
    assert published(tmp_path) == []
    gate.set()
    deadline = time.monotonic() + 30
    while not published(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
        run.checkpointer.poll()
    assert len(published(tmp_path)) == 1


def test_one_save_is_under_way_at_a_time(tmp_path, workloads, gate):
    """The next one waits for it: memory for two is never taken."""
    run = workloads.Run(tmp_path, asynchronous=True)
    run.checkpointer.save_checkpoint()
    threading.Timer(0.2, gate.set).start()
    run.checkpointer.save_checkpoint()
    assert len(published(tmp_path)) == 1
    run.checkpointer.close()
    assert len(published(tmp_path)) == 2


def test_retention_runs_after_publication(tmp_path, workloads, gate):
    """The older one stays until the newer one is there."""
    blocking = workloads.Run(tmp_path)
    blocking.checkpointer.save_checkpoint(name="older")
    blocking.checkpointer.close()
    run = workloads.Run(tmp_path, asynchronous=True)
    run.checkpointer.save_and_keep_only(name="newer")
    assert published(tmp_path) == ["CKPT+older"]
    gate.set()
    run.checkpointer.close()
    assert published(tmp_path) == ["CKPT+newer"]


def test_an_error_is_raised_in_the_loop(tmp_path, workloads):
    """At the next poll, never only logged; the save after it works."""
    run = workloads.Run(tmp_path, asynchronous=True)

    def point(operation, path, detail):
        if operation == "write":
            raise OSError(errno.ENOSPC, "No space left on device", path)

    with workloads.failpoint(point):
        run.checkpointer.save_checkpoint()
        run.checkpointer._writer._pending._thread.join()
        with pytest.raises(CheckpointSaveError, match="No space left"):
            run.checkpointer.poll()
    assert [path.name for path in tmp_path.iterdir()] == [".brain.lock"]
    run.set(2)
    run.checkpointer.save_checkpoint()
    run.checkpointer.close()
    assert workloads.Run(tmp_path).recover() == 2


def test_recovery_waits_for_what_is_under_way(tmp_path, workloads):
    """And so finds it."""
    run = workloads.Run(tmp_path, asynchronous=True)
    run.set(8)
    run.checkpointer.save_checkpoint()
    assert run.recover() == 8


def test_the_end_of_the_program_publishes_the_last_save(tmp_path):
    """Also where nobody called close."""
    program = f"""
import torch
from brain_ckpt import Checkpointer
model = torch.nn.Linear(9, 9)
checkpointer = Checkpointer({str(tmp_path)!r}, {{"model": model}}, asynchronous=True)
checkpointer.save_checkpoint()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert (
        Checkpointer(tmp_path, {"model": torch.nn.Linear(9, 9)}).recover_if_possible() is not None
    )


def test_copies_share_memory_where_the_originals_do():
    """Tied weights are one tensor in the file, and views stay views."""
    base = torch.arange(12.0)
    state = {"a": base, "b": base[3:6], "c": {"d": [base.view(3, 4).t(), 1, "x"]}, "e": (base,)}
    snapshots = SnapshotBuffers()
    snapshots.begin()
    copied = snapshots.copy(state)
    snapshots.end()
    base.zero_()
    assert copied["a"].tolist() == list(range(12))
    assert copied["b"].tolist() == [3, 4, 5]
    assert copied["c"]["d"][0].stride() == (1, 4)
    assert copied["b"].untyped_storage().data_ptr() == copied["e"][0].untyped_storage().data_ptr()


def test_buffers_are_kept_from_save_to_save():
    """The second copy lies where the first did."""
    snapshots = SnapshotBuffers()
    places = []
    for _ in range(2):
        snapshots.begin()
        copied = snapshots.copy({"w": torch.ones(1000), "v": torch.ones(1000)})
        snapshots.end()
        places.append({value.data_ptr() for value in copied.values()})
    assert places[0] == places[1]
    assert len(places[0]) == 2
