"""Asynchronous saves."""

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
    """Blocks the writer at its first write until it is opened."""
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


def test_the_state_at_the_call_is_saved(tmp_path, workloads, gate):
    """Later changes of the state do not matter."""
    run = workloads.Run(tmp_path, asynchronous=True)
    run.set(5)
    run.checkpointer.save_checkpoint()
    run.set(6)
    gate.set()
    run.checkpointer.close()
    assert workloads.Run(tmp_path).recover() == 5


def test_a_written_save_is_published_at_the_next_poll(tmp_path, workloads, gate):
    """It is published by the training thread, not earlier."""
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


def test_one_save_is_pending_at_a_time(tmp_path, workloads, gate):
    """The next save waits, so that only one copy of the state exists."""
    run = workloads.Run(tmp_path, asynchronous=True)
    run.checkpointer.save_checkpoint()
    threading.Timer(0.2, gate.set).start()
    run.checkpointer.save_checkpoint()
    assert len(published(tmp_path)) == 1
    run.checkpointer.close()
    assert len(published(tmp_path)) == 2


def test_retention_runs_after_publication(tmp_path, workloads, gate):
    """The older checkpoint is kept until the newer one is published."""
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
    """The next poll raises it, and a later save succeeds."""
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


def test_recovery_waits_for_a_pending_save(tmp_path, workloads):
    """The recovery finds the pending save."""
    run = workloads.Run(tmp_path, asynchronous=True)
    run.set(8)
    run.checkpointer.save_checkpoint()
    assert run.recover() == 8


def test_the_exit_of_the_program_publishes_a_pending_save(tmp_path):
    """This also holds if close was not called."""
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


def test_copies_share_memory_like_the_originals():
    """Tied weights are one tensor in the file, and views remain views."""
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


def test_buffers_are_reused_by_the_next_save():
    """The second copy has the address of the first."""
    snapshots = SnapshotBuffers()
    places = []
    for _ in range(2):
        snapshots.begin()
        copied = snapshots.copy({"w": torch.ones(1000), "v": torch.ones(1000)})
        snapshots.end()
        places.append({value.data_ptr() for value in copied.values()})
    assert places[0] == places[1]
    assert len(places[0]) == 2
