"""A save at an interval that fails for a cause that may pass is tried again at the next one."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import time

import pytest
import torch

from brain_ckpt import Checkpointer, CheckpointSaveError
from brain_ckpt.storage import filesystem
from brain_core import Brain, EpochCounter, TrainingStopped
from brain_dist import get_rank

EPOCHS, ROUNDS = 4, 10


@pytest.fixture
def disk(monkeypatch):
    """Return a mutable set of error numbers; while it has one, each write fails with it."""
    failing = set()

    def point(operation, path, detail):
        for code in tuple(failing) if operation == "write" else ():
            raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(filesystem, "failpoint", point)
    return failing


@pytest.fixture
def train(regression, pairs):
    """Return a function that trains; `at_batch` is called after each of 22 batches an epoch."""

    def run(
        directory,
        at_batch,
        *,
        asynchronous=False,
        epochs=1,
        at_stage_end=lambda brain, epoch: None,
        **options,
    ):
        class Run(regression):
            def on_fit_batch_end(self, batch, outputs, loss, should_step):
                while asynchronous and is_pending(checkpointer):
                    time.sleep(0.001)  # so that the disk changes between two saves
                at_batch(self)

            def on_stage_end(self, stage, stage_loss, epoch):
                at_stage_end(self, epoch)

        torch.manual_seed(0)
        model = torch.nn.Linear(4, 2)
        counter = EpochCounter(epochs)
        checkpointer = Checkpointer(directory, {"counter": counter}, asynchronous=asynchronous)
        brain = Run(
            {"model": model},
            lambda p: torch.optim.AdamW(p, lr=0.1),
            run_opts={"device": "cpu", "ckpt_interval_steps": 2, "noprogressbar": True, **options},
            checkpointer=checkpointer,
        )
        brain.fit(counter, pairs, train_loader_kwargs={"batch_size": 1, "shuffle": True})
        checkpointer.close()
        return model.weight.detach().clone()

    return run


def is_pending(checkpointer):
    """Return whether a thread writes a checkpoint."""
    pending = checkpointer._writer._pending
    return pending is not None and not pending.is_written


def failures(caplog):
    return [r.getMessage() for r in caplog.records if "was NOT saved" in r.getMessage()]


@pytest.mark.parametrize(
    ("code", "asynchronous"),
    [
        *((code, False) for code in ("ENOSPC", "EDQUOT", "EIO", "ESTALE", "ENOTCONN")),
        ("ENOSPC", True),
    ],
)
def test_a_disk_that_fails_for_a_moment_does_not_end_the_run(
    code, asynchronous, disk, train, tmp_path, caplog
):
    """The failure is logged as an error, the next save succeeds, and the weights are the same."""
    expected = train(tmp_path / "undisturbed", lambda brain: None)

    def at_batch(brain):
        disk.clear()
        if brain.step in (7, 8, 15, 16):
            disk.add(getattr(errno, code))

    assert torch.equal(train(tmp_path / "run", at_batch, asynchronous=asynchronous), expected)
    assert len(failures(caplog)) >= 1
    assert "failure 1 of 3 in a row" in failures(caplog)[0]
    assert os.strerror(getattr(errno, code)) in failures(caplog)[0]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("patience", [1, 3])
def test_as_many_failures_in_a_row_as_the_option_says_end_the_run(
    patience, asynchronous, disk, train, tmp_path, caplog
):
    """The error is that of the last save; the checkpoint from before is there."""

    def at_batch(brain):
        if brain.step == 7:
            disk.add(errno.ENOSPC)

    with pytest.raises(CheckpointSaveError, match="No space left"):
        train(tmp_path, at_batch, asynchronous=asynchronous, ckpt_interval_patience=patience)
    assert len(failures(caplog)) == patience - 1
    disk.clear()
    assert len(Checkpointer(tmp_path).list_checkpoints()) == 1


@pytest.mark.parametrize("asynchronous", [False, True])
def test_failures_that_are_not_in_a_row_do_not_end_the_run(
    asynchronous, disk, train, tmp_path, caplog
):
    """A save between them starts the count anew."""

    def at_batch(brain):
        disk.clear()
        if brain.step % 6 in (3, 4) and brain.step < 20:
            disk.add(errno.ENOSPC)

    train(tmp_path, at_batch, asynchronous=asynchronous, epochs=2)
    assert len(failures(caplog)) >= 6


@pytest.mark.parametrize("code", ["EACCES", "EROFS", "EFBIG"])
def test_a_cause_that_does_not_pass_ends_the_run_at_once(code, disk, train, tmp_path):
    """Such as a missing permission."""

    def at_batch(brain):
        disk.add(getattr(errno, code))

    with pytest.raises(CheckpointSaveError, match=os.strerror(getattr(errno, code))):
        train(tmp_path, at_batch)


def test_a_stop_that_cannot_save_is_an_error(disk, train, tmp_path):
    """The progress would be lost."""

    def at_batch(brain):
        if brain.step == 5:
            disk.add(errno.ENOSPC)
            brain.stop("for the test")

    with pytest.raises(CheckpointSaveError, match="No space left"):
        train(tmp_path, at_batch)
    disk.clear()
    with pytest.raises(TrainingStopped):
        train(tmp_path, lambda brain: brain.stop("for the test"))


def test_the_end_of_fit_that_cannot_save_is_an_error(disk, train, tmp_path):
    """Although the save at the end of the data may fail."""

    def at_batch(brain):
        if brain.step == 22:
            disk.add(errno.ENOSPC)

    with pytest.raises(CheckpointSaveError, match="No space left"):
        train(tmp_path, at_batch)


def test_a_save_by_the_recipe_is_an_error(disk, train, tmp_path):
    """It has a name or a metric that the recipe relies on."""

    def at_batch(brain):
        if brain.step == 3:
            disk.add(errno.ENOSPC)
            brain.checkpointer.save_checkpoint(name="mine")

    with pytest.raises(CheckpointSaveError, match="No space left"):
        train(tmp_path, at_batch)


def test_the_end_is_saved_although_the_last_save_at_an_interval_failed(disk, train, tmp_path):
    """A failed save does not count as saved, nor does the checkpoint from before it."""

    def at_batch(brain):
        if brain.step == 22 and brain.checkpointer.list_checkpoints():
            disk.add(errno.ENOSPC)

    def at_stage_end(brain, epoch):
        disk.clear()
        if epoch == 1:
            brain.checkpointer.save_checkpoint()

    options = {"epochs": 2, "ckpt_interval_steps": 50}
    weights = train(tmp_path, at_batch, at_stage_end=at_stage_end, **options)
    model = torch.nn.Linear(4, 2)
    Checkpointer(tmp_path, {"model": model}).recover_if_possible()
    assert torch.equal(model.weight, weights)


def test_a_disk_without_room_for_one_checkpoint_is_an_error_before_the_first_batch(
    train, tmp_path, monkeypatch
):
    """With both numbers; the run would otherwise end hours later."""
    monkeypatch.setattr("brain_ckpt.space_check.free_space", lambda root: 10)

    def at_batch(brain):
        raise AssertionError("a batch was trained")

    with pytest.raises(CheckpointSaveError, match="a checkpoint must fit on the disk"):
        train(tmp_path, at_batch)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.long
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_disk_that_fills_up_ten_times_changes_no_weight(
    asynchronous, small_disk, train, tmp_path, caplog
):
    """It is filled by another program and freed again after at most two failed saves."""
    caplog.set_level(logging.ERROR)
    filler = small_disk / "filler"
    filled = []

    def at_batch(brain):
        number = len(filled)
        if brain.step in (6, 12, 18) and number < ROUNDS:
            filled.append(brain.step)
            with filler.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError as error:
                    assert error.errno == errno.ENOSPC  # noqa: PT017 - the expected end of the loop
        elif brain.step in (9, 15, 20):
            filler.unlink(missing_ok=True)

    expected = train(tmp_path / "undisturbed", lambda brain: None, epochs=EPOCHS)
    found = train(small_disk / "save", at_batch, asynchronous=asynchronous, epochs=EPOCHS)
    assert len(filled) == ROUNDS
    assert len(failures(caplog)) >= ROUNDS
    assert torch.equal(found, expected)
    model = torch.nn.Linear(4, 2)
    assert Checkpointer(small_disk / "save", {"model": model}).recover_if_possible() is not None
    assert torch.equal(model.weight, expected)
    print(f"filled {len(filled)} times, {len(failures(caplog))} failed saves, equal weights")  # noqa: T201 - for -s


class TwoRanks(Brain):
    """Trains one weight on rows of both ranks; the disk fails for rank 0 after some batches."""

    failing_at: tuple[int, ...] = ()

    def compute_forward(self, batch, stage):
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        return predictions.mean()

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        def point(operation, path, detail):
            if operation == "write" and get_rank() == 0 and self.step in self.failing_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

        filesystem.failpoint = point


def train_two_ranks(rank, folder, failing_at):
    """Return the weights, or the error, of this rank."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    brain = TwoRanks(
        {"model": model},
        lambda p: torch.optim.SGD(p, lr=0.1),
        run_opts={"device": "cpu", "distributed_backend": "gloo", "ckpt_interval_steps": 1},
        checkpointer=Checkpointer(folder),
    )
    brain.failing_at = failing_at
    rows = torch.utils.data.TensorDataset(torch.arange(36.0).reshape(12, 3))
    try:
        brain.fit(range(1), rows, train_loader_kwargs={"batch_size": 1})
    except CheckpointSaveError as error:
        return str(error)
    finally:
        filesystem.failpoint = None
    return model.weight.tolist()


def test_a_failed_save_of_one_rank_is_survived_by_all_ranks_or_by_none(ranks, tmp_path):
    """All of them count it, so that all end after the same batch."""
    undisturbed = ranks(train_two_ranks, 2, tmp_path / "undisturbed", ())
    assert ranks(train_two_ranks, 2, tmp_path / "survived", (2, 3)) == undisturbed
    first, second = ranks(train_two_ranks, 2, tmp_path / "ended", (2, 3, 4))
    assert "No space left" in first
    assert "No space left" in second
