"""A reader sees each checkpoint as a whole, whatever a writer does meanwhile."""

import contextlib
import gc
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch

from brain_ckpt import (
    Checkpointer,
    CheckpointGoneError,
    Pretrainer,
    average_checkpoints,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from brain_ckpt.cli.main import main
from brain_ckpt.loading.state_file import read_state_file, reading_without_manifest
from brain_ckpt.storage import filesystem
from brain_ckpt.storage import opened as opened_module
from brain_ckpt.storage.layout import UNFINISHED
from brain_ckpt.storage.opened import Patience, open_checkpoint
from brain_ckpt.storage.verify import verify_opened

WAYS = {
    "replaced": {"name": "best"},
    "deleted": {},
    "replaced, unrenamed": {"name": "best", "atomic_rename": False},
    "deleted, unrenamed": {"atomic_rename": False},
}


@pytest.fixture(params=[True, False], ids=["handles", "no handles"])
def handles(request, monkeypatch):
    """Whether the system has paths of open directories."""
    if not request.param:
        monkeypatch.setattr(filesystem, "_HANDLES", Path("/no/such/directory"))
    return request.param


@pytest.fixture(params=WAYS)
def writer(request, fast_dir, workloads):
    """Return a function that saves the next number and keeps only that checkpoint."""
    options = dict(WAYS[request.param])
    name = options.pop("name", None)
    run = workloads.Run(fast_dir, **options)

    def save(number):
        run.set(number)
        run.checkpointer.save_and_keep_only({"number": number}, name=name)

    save(1)
    return save


def save_at(workloads, writer, place):
    """Save once before the n-th file that a reader opens; return where that was, in a list."""
    opened, saved = [], []

    def point(operation, path, detail):
        if operation != "open" or saved:
            return
        opened.append(path)
        if len(opened) == place:
            saved.append(path)
            with workloads.failpoint(None):
                writer(2)

    return point, saved


class HalfSave:
    """A save in a thread, begun where a reader opens a file and held before one of its writes.

    The reader's next look lets it end.
    """

    def __init__(self, save, monkeypatch):
        self.save = save
        self.opens, self.writes = 1, 0  # where the reader is, and where the save is held
        self.reached_write = True
        monkeypatch.setattr(Patience, "wait", lambda _: self.finish())
        self.thread = None

    def __repr__(self):
        return f"begun before file {self.opens} that is opened, held before write {self.writes}"

    def next(self):
        """Go on to the next write, or the next file; return False behind the last of both."""
        if not self.reached_write:
            if self.writes == 1:
                return False
            self.opens, self.writes = self.opens + 1, 0
        self.writes += 1
        self.opened = self.written = 0
        self.reached_write = False
        self.thread, self.held, self.released = None, threading.Event(), threading.Event()
        return True

    def point(self, operation, path, detail):
        if threading.current_thread() is self.thread:
            self.written += operation not in ("open", "list", "fsync", "fsync_directory")
            if self.written == self.writes and not self.released.is_set():
                self.reached_write = True
                self.held.set()
                self.released.wait(60)
        elif operation == "open" and self.thread is None:
            self.opened += 1
            if self.opened == self.opens:
                self.thread = threading.Thread(target=self._run)
                self.thread.start()
                self.held.wait(60)

    def _run(self):
        self.save()
        self.held.set()

    def finish(self):
        """Let the save end."""
        self.released.set()
        if self.thread is not None:
            self.thread.join(60)


def read_at_every_place(workloads, writer, read, check):
    """Read again and again, with a save before another file each time, until none is left."""
    place = 0
    while True:
        place += 1
        writer(1)
        point, saved = save_at(workloads, writer, place)
        with workloads.failpoint(point):
            result = read()
        if not saved:
            return place
        assert check(result), f"saved before opening file {place}: {saved}"


def test_a_replaced_checkpoint_is_read_as_a_whole(writer, workloads, fast_dir, handles):
    """Meta and all states are of one save, at whichever file the other save comes."""

    def read():
        reader = workloads.Run(fast_dir)
        reader.set(0)
        found = reader.checkpointer.recover_if_possible()
        return found is not None and found.meta["number"], reader.number()

    places = read_at_every_place(workloads, writer, read, lambda result: result in {(1, 1), (2, 2)})
    assert places > 8


def test_a_listing_beside_a_writer_is_never_empty(writer, workloads, fast_dir, handles):
    """Also the best checkpoint by a metric is found."""

    def read():
        checkpointer = Checkpointer(fast_dir, {"model": torch.nn.Linear(1, 1)})
        found = checkpointer.find_checkpoints(max_key="number")
        return [one.meta["number"] for one in found]

    places = read_at_every_place(
        workloads, writer, read, lambda numbers: numbers and set(numbers) <= {1, 2}
    )
    assert places > 3


def test_an_average_is_of_the_listed_checkpoint(writer, workloads, fast_dir, handles):
    """If the checkpoint was deleted or replaced, the error says to list again."""

    def read():
        found = Checkpointer(fast_dir, {"model": torch.nn.Linear(1, 1)}).find_checkpoints()
        try:
            average = average_checkpoints(found, "model")
        except CheckpointGoneError as error:
            return "list the checkpoints again" in str(error)
        return average["weight"].unique().tolist() == [found[0].meta["number"]]

    assert read_at_every_place(workloads, writer, read, bool) > 4


def test_pretrained_parameters_are_of_one_save(writer, workloads, fast_dir, handles):
    """The path of a named checkpoint is that of its newest save."""
    if not (fast_dir / "CKPT+best").exists():
        pytest.skip("the path of a deleted checkpoint is a missing file")
    path = str(fast_dir / "CKPT+best" / "model.ckpt")

    def read():
        model = torch.nn.Linear(3, 2)
        pretrainer = Pretrainer(loadables={"model": model}, paths={"model": path})
        pretrainer.collect_files()
        pretrainer.load_collected()
        return {*model.weight.unique().tolist(), *model.bias.unique().tolist()}

    assert read_at_every_place(workloads, writer, read, lambda found: found in ({1}, {2})) > 2


def test_a_file_that_becomes_part_of_half_a_save_while_it_is_read_is_gone(fast_dir):
    """It was verified while the former checkpoint was deleted, and may be empty now."""
    file = fast_dir / "CKPT+best" / "model.ckpt"
    file.parent.mkdir()
    torch.save({"weight": torch.ones(2)}, file)
    assert read_state_file(file, "model")["weight"].tolist() == [1.0, 1.0]
    with pytest.raises(CheckpointGoneError), reading_without_manifest(file):
        (file.parent / UNFINISHED).touch()


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["no_link", "copy"])
def test_pretrained_parameters_are_not_those_of_half_a_save(
    strategy, workloads, fast_dir, tmp_path, handles, monkeypatch
):
    """A save in place, stopped before each of its writes, waits until the reader has looked."""
    run = workloads.Run(fast_dir, atomic_rename=False)

    def save(number):
        run.set(number)
        run.checkpointer.save_and_keep_only({"number": number}, name="best")

    save(1)
    path = str(fast_dir / "CKPT+best" / "model.ckpt")

    def read():
        model = torch.nn.Linear(3, 2)
        pretrainer = Pretrainer(
            collect_in=tmp_path / "collected", loadables={"model": model}, paths={"model": path}
        )
        pretrainer.collect_files(local_strategy=strategy)
        pretrainer.load_collected()
        return {*model.weight.unique().tolist(), *model.bias.unique().tolist()}

    stops = HalfSave(lambda: save(2), monkeypatch)
    seen = []
    while stops.next():
        save(1)
        with workloads.failpoint(stops.point):
            found = read()
            stops.finish()
        assert found in ({1}, {2}), stops
        seen.append(found)
    assert {1} in seen
    assert {2} in seen


@pytest.mark.parametrize(
    "command",
    [
        "ls",
        pytest.param("verify", marks=pytest.mark.long),
        pytest.param("prune --keep-last 1 --dry-run", marks=pytest.mark.long),
    ],
)
def test_the_command_finds_no_damage_beside_a_writer(
    command, writer, workloads, fast_dir, handles, capsys
):
    """A checkpoint that is deleted or replaced meanwhile is no damage."""
    name, *options = command.split()

    def read():
        code = main([name, str(fast_dir), *options])
        return code == 0 and "CKPT+" in capsys.readouterr().out

    assert read_at_every_place(workloads, writer, read, bool) > 3


def test_a_deleted_checkpoint_that_was_listed_is_named(tmp_path):
    """load_checkpoint cannot choose another one."""
    checkpointer = Checkpointer(tmp_path, {"model": torch.nn.Linear(1, 1)})
    first = checkpointer.save_checkpoint()
    checkpointer.save_and_keep_only()
    with pytest.raises(CheckpointGoneError, match="list the checkpoints again"):
        checkpointer.load_checkpoint(first)


def test_a_replaced_checkpoint_that_was_listed_is_not_loaded(tmp_path):
    """Its meta would not be that of the loaded states."""
    model = torch.nn.Linear(1, 1)
    checkpointer = Checkpointer(tmp_path, {"model": model})
    listed = checkpointer.save_checkpoint({"loss": 1.0}, name="best")
    checkpointer.save_checkpoint({"loss": 0.5}, name="best")
    before = model.weight.clone()
    torch.nn.init.zeros_(model.weight)
    with pytest.raises(CheckpointGoneError):
        checkpointer.load_checkpoint(listed)
    assert model.weight.item() == 0
    checkpointer.load_checkpoint(checkpointer.find_checkpoint())
    assert torch.equal(model.weight, before)


@register_checkpoint_hooks
class Hooked:
    """Reads a file whose checkpoint is replaced during its first call."""

    def __init__(self, meanwhile=lambda: None):
        self.text, self.paths, self.meanwhile = "1", [], meanwhile

    @mark_as_saver
    def save(self, path):
        path.write_text(self.text)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        if not self.paths:
            self.meanwhile()
        self.paths.append(path)
        self.text = path.read_text()


def test_a_hook_is_called_again_if_its_file_is_replaced(tmp_path):
    """First with the usual path, then with one that still refers to the replaced file."""
    saved = Hooked()
    writer = Checkpointer(tmp_path, {"hooked": saved, "model": torch.nn.Linear(1, 1)})
    writer.save_checkpoint({"number": 1}, name="best")

    def replace():
        saved.text = "2"
        writer.save_checkpoint({"number": 2}, name="best")

    loaded = Hooked(replace)
    found = Checkpointer(tmp_path, {"hooked": loaded}).recover_if_possible()
    assert found.meta["number"] == int(loaded.text) == 1
    assert loaded.paths[0] == tmp_path / "CKPT+best" / "hooked.ckpt"
    assert len(loaded.paths) == 2


def test_a_hook_reads_the_usual_path(tmp_path):
    """Without a replacement it is called once."""
    checkpointer = Checkpointer(tmp_path, {"hooked": Hooked()})
    path = checkpointer.save_checkpoint().paramfiles["hooked"]
    loaded = Hooked()
    Checkpointer(tmp_path, {"hooked": loaded}).recover_if_possible()
    assert loaded.paths == [path]


@pytest.mark.parametrize("limit", [None, 4], ids=["all files held", "two files held"])
def test_a_held_checkpoint_is_read_after_its_deletion(tmp_path, monkeypatch, limit):
    """Files beyond a quarter of the process's limit are not held: they are reported as gone."""
    checkpointer = Checkpointer(tmp_path, {"model": torch.nn.Linear(2, 1)})
    path = checkpointer.save_checkpoint({"number": 1}).path
    if limit is not None:
        monkeypatch.setattr(filesystem, "_descriptor_limit", lambda: limit)
    with open_checkpoint(path, hold=True) as opened, contextlib.ExitStack() as stack:
        shutil.rmtree(path)
        if limit is not None:
            stack.enter_context(pytest.raises(CheckpointGoneError))
            stack.enter_context(opened.reading())
        verify_opened(opened)
        assert set(torch.load(opened.locate("model.ckpt"))) == {"weight", "bias"}


def test_a_reader_gives_up_only_after_minutes(tmp_path, monkeypatch):
    """The number of checkpoints that were replaced meanwhile does not matter."""
    now = [0.0]
    monkeypatch.setattr(opened_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(opened_module.time, "sleep", lambda seconds: None)
    patience = Patience(tmp_path)
    for _ in range(10_000):
        patience.wait()
    now[0] = 601.0
    with pytest.raises(CheckpointGoneError, match="for 600 s each one in"):
        patience.wait()


def test_no_handle_stays_open(tmp_path):
    """Reading a thousand times opens no more files than reading once."""
    checkpointer = Checkpointer(tmp_path, {"model": torch.nn.Linear(1, 1)})
    checkpointer.save_checkpoint()
    gc.collect()  # checkpointers of other tests, which hold locks
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        checkpointer.recover_if_possible()
        checkpointer.find_checkpoints()
    assert len(os.listdir("/proc/self/fd")) == before


def test_errors_name_the_usual_path(tmp_path):
    """Not that of the handle."""
    checkpointer = Checkpointer(tmp_path, {"model": torch.nn.Linear(2, 1)})
    path = checkpointer.save_checkpoint().path
    (path / "model.ckpt").write_bytes(b"")
    with pytest.raises(RuntimeError, match="is damaged") as caught:
        checkpointer.recover_if_possible()
    assert str(path) in str(caught.value)
    assert "/proc/" not in str(caught.value)
