"""Errors of the disk at any operation are raised and lose nothing."""

import errno
import itertools
import os
import resource
import shutil
import signal

import pytest
import torch

from brain_ckpt import Checkpointer, CheckpointError, CheckpointSaveError
from brain_ckpt.storage import filesystem

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")

ERRORS = ["ENOSPC", "EIO", "EROFS", "EACCES", "EDQUOT", "EINTR"]
CASES = [
    *itertools.product(("first", "later", "replacing", "asynchronous"), ERRORS),
    *itertools.product(("unrenamed", "unrenamed, replacing"), ("ENOSPC", "EIO")),
]
OFTEN = {  # not in the long run only
    ("later", "ENOSPC"),
    ("later", "EINTR"),
    ("replacing", "EIO"),
    ("asynchronous", "EROFS"),
    ("unrenamed, replacing", "EIO"),
}
WRITING = ("mkdir", "create", "write", "fsync", "fsync_directory", "rename", "unlink", "rmdir")


class FailAt:
    """A failpoint that raises at the n-th write operation, once or from then on."""

    def __init__(self, number, code, lasting=False):
        self.number, self.code, self.lasting = number, code, lasting
        self.count = 0
        self.done = 0

    def __call__(self, operation, path, detail):
        if operation in WRITING:
            self.count += 1
            if self.count == self.number or (self.lasting and self.count > self.number):
                self.done += 1
                if self.done < 200:  # a permanent EINTR would be retried for ever
                    raise OSError(self.code, os.strerror(self.code), path)


@pytest.mark.parametrize(
    ("name", "code"),
    [pytest.param(*one, marks=() if one in OFTEN else pytest.mark.long) for one in CASES],
)
def test_an_error_at_any_operation_loses_nothing(name, code, workloads, fast_dir, times, tally):
    """Every third write operation or, in a long run, each fails, alternately once and for good."""
    source, directory = fast_dir / "base", fast_dir / "save"
    source.mkdir()
    before = workloads.base(source, name)
    for number in itertools.count(1, times(3, 1)):
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(source, directory)
        point = FailAt(number, getattr(errno, code), lasting=number % 2 == 0)
        acknowledged, raised = [before], None
        with workloads.failpoint(point):
            try:
                workloads.WORKLOADS[name](directory, acknowledged.append)
            except CheckpointSaveError as error:
                raised = error
        if raised is not None:
            assert isinstance(raised.__cause__, OSError)
            assert raised.__cause__.errno == getattr(errno, code)
            assert str(directory) in str(raised)
        if not point.done:
            break
        tally["errors injected"] += 1
        problem = workloads.problem_after_fault(
            directory, max(acknowledged), saves_again=number % 4 == 0
        )
        tally["losses"] += problem is not None
        assert problem is None, f"{code} at operation {number}"
    assert number > 10


def test_short_writes_are_completed(workloads, fast_dir):
    """A disk that accepts seven bytes at a time gets the same file."""
    run = workloads.Run(fast_dir)
    run.set(5)
    with workloads.failpoint(lambda operation, path, detail: 7 if operation == "write" else None):
        run.checkpointer.save_checkpoint()
    assert workloads.Run(fast_dir).recover() == 5


def test_a_disk_that_takes_no_byte_is_full(workloads, fast_dir):
    """A write of zero bytes is an error, not an endless loop."""
    run = workloads.Run(fast_dir)
    with (
        workloads.failpoint(lambda operation, path, detail: 0 if operation == "write" else None),
        pytest.raises(CheckpointSaveError, match="took no byte"),
    ):
        run.checkpointer.save_checkpoint()


def test_a_file_is_written_again_after_a_failed_fsync(workloads, fast_dir):
    """The content of the disk is unknown after a failed fsync, so the file is written again."""
    log = []

    def point(operation, path, detail):
        name = os.path.basename(path)
        if name == "model.ckpt" and operation in ("create", "fsync", "unlink"):
            log.append(operation)
            if log == ["create", "fsync"]:
                raise OSError(errno.EIO, "I/O error", path)

    run = workloads.Run(fast_dir)
    run.set(3)
    with workloads.failpoint(point):
        run.checkpointer.save_checkpoint()
    assert log == ["create", "fsync", "unlink", "create", "fsync"]
    assert workloads.Run(fast_dir).recover() == 3


def test_a_full_disk_is_named_in_the_error(tmp_path, processes, workloads):
    """With a limit on file sizes the OSError is raised, not torch's `unexpected pos`."""
    model = torch.nn.Linear(600, 600)
    checkpointer = Checkpointer(tmp_path, {"model": model})
    checkpointer.save_checkpoint()
    checkpointer.close()
    message = tmp_path / "message"

    def run(report):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            Checkpointer(tmp_path, {"model": model}).save_checkpoint()
        except CheckpointSaveError as error:
            message.write_text(f"{type(error.__cause__).__name__} {error.__cause__.errno} {error}")

    assert processes.Child(run).wait() == processes.FINISHED
    assert message.read_text().startswith(f"OSError {errno.EFBIG} ")
    assert "unexpected pos" not in message.read_text()
    assert [path.name for path in tmp_path.glob(".tmp*")] == []
    assert Checkpointer(tmp_path, {"model": model}).recover_if_possible() is not None


def test_a_directory_without_write_permission_can_be_read(tmp_path, processes, workloads):
    """Recovery needs no lock and writes nothing; a save raises the cause."""
    directory = tmp_path / "save"
    run = workloads.Run(directory)
    run.set(4)
    run.checkpointer.save_checkpoint()
    run.checkpointer.close()

    def child(report):
        for path in [tmp_path.parent, *tmp_path.parents]:
            if os.stat(path).st_uid == os.getuid() and str(path) not in ("/", "/tmp"):
                os.chmod(path, 0o755)
        os.chmod(tmp_path, 0o755)
        os.chmod(directory, 0o555)
        if os.getuid() == 0:
            os.setuid(65534)
        reader = workloads.Run(directory)
        assert reader.recover() == 4
        with pytest.raises((CheckpointError, PermissionError), match="Permission"):
            reader.checkpointer.save_checkpoint()
        report(1)

    forked = processes.Child(child)
    assert forked.wait() == processes.FINISHED
    assert forked.reports == [1]
    directory.chmod(0o755)


def test_the_next_save_removes_the_leftovers_of_a_failed_one(workloads, fast_dir):
    """This also holds if the cleanup fails."""

    def point(operation, path, detail):
        if operation in ("fsync_directory", "unlink", "rmdir"):
            raise OSError(errno.EIO, "I/O error", path)

    run = workloads.Run(fast_dir)
    run.set(1)
    with workloads.failpoint(point), pytest.raises(CheckpointSaveError):
        run.checkpointer.save_checkpoint()
    assert list(fast_dir.glob(".tmp*"))
    run.checkpointer.save_checkpoint()
    assert not list(fast_dir.glob(".tmp*"))
    assert filesystem.failpoint is None
