"""Directories that SpeechBrain wrote, and directories of brain-ckpt as SpeechBrain reads them.

The lister and the loader are written from the format description: a directory whose name starts
with CKPT and that holds CKPT.yaml is a checkpoint; ``<name>.ckpt`` is the file of a recoverable.
"""

import shutil
import threading

import numpy as np
import pytest
import torch
import yaml

from brain_ckpt import Checkpointer, RNGState, mark_as_loader, mark_as_saver

LEGACY = {"_use_new_zipfile_serialization": False}


class Text:
    """Its file is text, like those of SpeechBrain's counter, loader and Brain."""

    def __init__(self, text=""):
        self.text = text

    @mark_as_saver
    def save(self, path):
        path.write_text(self.text)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        self.text = path.read_text()


class Run:
    """The objects of a run after some steps."""

    def __init__(self, seed, steps=0):
        generator = torch.Generator().manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(torch.rand(parameter.shape, generator=generator))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01 * seed)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)
        for _ in range(steps):
            self.model(torch.rand(5, 3, generator=generator)).square().sum().backward()
            self.optimizer.step()
            self.scheduler.step()
        self.counter = Text(str(seed))
        self.loader = Text(str(10 * seed))
        self.brain = Text(f"avg_train_loss: 0.5\noptimizer_step: {steps}\nstep: {steps}\n")

    def recoverables(self):
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "counter": self.counter,
            "dataloader-TRAIN": self.loader,
            "brain": self.brain,
        }

    def is_equal(self, other):
        """Return whether another run has a bit-equal state."""
        mine, theirs = (
            [run.model.state_dict(), run.optimizer.state_dict(), run.scheduler.state_dict()]
            for run in (self, other)
        )
        texts = [[run.counter.text, run.loader.text, run.brain.text] for run in (self, other)]
        return texts[0] == texts[1] and _equal(mine, theirs)


def _equal(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_equal(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(_equal, left, right))
    return left == right


def write_as_speechbrain(save, name, meta, run, **how):
    """Write a checkpoint as SpeechBrain 1.1 does: the meta file first, with the unsafe dumper."""
    path = save / f"CKPT+{name}"
    path.mkdir(parents=True)
    text = yaml.dump({"end-of-epoch": True, **meta})
    (path / "CKPT.yaml").write_text("# yamllint disable\n" + text)
    for key, obj in run.recoverables().items():
        file = path / f"{key}.ckpt"
        if isinstance(obj, Text):
            obj.save(file)
        else:
            torch.save(obj.state_dict(), file, **how)
    return path


def list_as_speechbrain(save):
    """List by name and CKPT.yaml, newest first, as SpeechBrain does, but with safe YAML."""
    found = []
    for path in save.iterdir():
        if path.is_dir() and path.name.startswith("CKPT") and (path / "CKPT.yaml").exists():
            meta = yaml.safe_load((path / "CKPT.yaml").read_text(encoding="utf-8"))
            files = {file.stem: file for file in path.iterdir() if file.suffix == ".ckpt"}
            found.append((path, meta, files))
    return sorted(found, key=lambda one: one[1]["unixtime"], reverse=True)


def load_as_speechbrain(listed, run):
    """Load each recoverable from its file as SpeechBrain does; a missing file is an error."""
    _, meta, files = listed
    for name, obj in run.recoverables().items():
        if isinstance(obj, Text):
            obj.load(files[name], meta["end-of-epoch"])
        else:
            obj.load_state_dict(torch.load(files[name], map_location="cpu", weights_only=True))


@pytest.mark.parametrize("how", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "metrics",
    [
        {"loss": 0.25},
        {"loss": np.float64(0.25), "count": np.int64(3), "half": np.float32(0.5)},
        {"loss": 0.25, "betas": (0.9, 0.999), "nested": {"pair": (1, (2, "three"))}},
        {"loss": np.float16(0.25), "flag": np.bool_(True), "none": None},  # noqa: FBT003 - a scalar
    ],
    ids=["floats", "numpy", "tuples", "more"],
)
def test_a_directory_of_speechbrain_is_recovered_by_its_best_metric(metrics, how, tmp_path):
    """Meta can hold any type, and both formats of torch files are read."""
    best, newest = Run(1, steps=3), Run(2, steps=1)
    write_as_speechbrain(tmp_path, "best", {"unixtime": 1.0, **metrics}, best, **how)
    worse = {"unixtime": 2.5, "end-of-epoch": False, "loss": np.float64(0.75)}
    write_as_speechbrain(tmp_path, "newest", worse, newest, **how)
    found = Run(3)
    checkpointer = Checkpointer(tmp_path, found.recoverables())
    loaded = checkpointer.recover_if_possible(min_key="loss")
    assert loaded.meta == {"end-of-epoch": True, "unixtime": 1.0, **metrics}
    assert not [value for value in loaded.meta.values() if type(value).__module__ == "numpy"]
    assert found.is_equal(best)
    assert checkpointer.recover_if_possible().path.name == "CKPT+newest"
    assert found.is_equal(newest)


def test_a_numpy_scalar_of_numpy_1_is_read(tmp_path):
    """NumPy 1 has another module name for its scalars."""
    meta = {"unixtime": 1.0, "acc": np.float64(0.5)}
    path = write_as_speechbrain(tmp_path, "old", meta, Run(1))
    file = path / "CKPT.yaml"
    text = file.read_text()
    assert "numpy._core" in text or "numpy.core" in text
    file.write_text(text.replace("numpy._core", "numpy.core"))
    assert Checkpointer(tmp_path).find_checkpoint(max_key="acc").meta["acc"] == 0.5


def test_a_run_of_speechbrain_continues_in_the_same_directory(tmp_path):
    """Both kinds of checkpoints are in one list, and retention deletes the old ones."""
    old, run = Run(1, steps=2), Run(9)
    write_as_speechbrain(tmp_path, "2026+00", {"unixtime": 1.0, "loss": np.float64(0.5)}, old)
    write_as_speechbrain(tmp_path, "2026+01", {"unixtime": 2.0, "loss": np.float64(0.9)}, old)
    checkpointer = Checkpointer(tmp_path, run.recoverables())
    checkpointer.recover_if_possible()
    checkpointer.save_and_keep_only({"loss": 0.7}, min_keys=["loss"])
    assert [one.meta["loss"] for one in checkpointer.list_checkpoints()] == [0.5, 0.7]
    checkpointer.save_and_keep_only({"loss": 0.25}, min_keys=["loss"])
    ours = list_as_speechbrain(tmp_path)
    assert [meta["loss"] for _, meta, _ in ours] == [0.25]
    again = Run(5)
    load_as_speechbrain(ours[0], again)
    assert again.is_equal(old)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_speechbrain_lists_and_loads_ours(asynchronous, tmp_path):
    """Every kind of recoverable is loaded, and no other file is taken for one."""
    run = Run(1, steps=3)
    checkpointer = Checkpointer(tmp_path, run.recoverables(), asynchronous=asynchronous)
    checkpointer.add_recoverable("rng", RNGState(), per_rank=True)
    checkpointer.save_checkpoint({"loss": 0.5}, end_of_epoch=False)
    checkpointer.save_checkpoint({"loss": 0.75}, name="named")
    checkpointer.close()
    newest, older = list_as_speechbrain(tmp_path)
    assert newest[0].name == "CKPT+named"
    assert (newest[1]["loss"], newest[1]["end-of-epoch"]) == (0.75, True)
    assert (older[1]["loss"], older[1]["end-of-epoch"]) == (0.5, False)
    for one in (newest, older):
        assert set(one[2]) == set(run.recoverables())
        found = Run(7)
        load_as_speechbrain(one, found)
        assert found.is_equal(run)


def test_metas_are_written_as_plain_yaml(tmp_path):
    """NumPy scalars, tensors and tuples become plain values."""
    meta = {
        "acc": np.float64(0.5),
        "loss": torch.tensor(0.25),
        "count": np.int64(3),
        "betas": (0.9, 0.5),
        "note": "naïve: ünïcode",
        "worst": float("inf"),
    }
    Checkpointer(tmp_path, {"model": torch.nn.Linear(1, 1)}).save_checkpoint(meta)
    ((path, read, _),) = list_as_speechbrain(tmp_path)
    assert "!!python" not in (path / "CKPT.yaml").read_text(encoding="utf-8")
    expected = {"acc": 0.5, "loss": 0.25, "count": 3, "betas": [0.9, 0.5]}
    assert {key: read[key] for key in expected} == expected
    assert (read["note"], read["worst"]) == ("naïve: ünïcode", float("inf"))


def test_names_from_the_time_are_those_of_speechbrain(tmp_path):
    """The names are CKPT+date+time+number."""
    checkpointer = Checkpointer(tmp_path, {"model": torch.nn.Linear(1, 1)})
    names = [checkpointer.save_checkpoint().path.name for _ in range(2)]
    for name in names:
        prefix, day, clock, number = name.split("+")
        assert (prefix, len(day.split("-")), len(clock.split("-"))) == ("CKPT", 3, 3)
        assert len(number) == 2
        assert number.isdecimal()


@pytest.mark.parametrize("atomic_rename", [True, False])
def test_speechbrain_lists_only_complete_checkpoints_during_saves(atomic_rename, tmp_path):
    """It reads without a lock, and every checkpoint that it lists can be loaded."""
    run = Run(1, steps=1)
    checkpointer = Checkpointer(tmp_path, run.recoverables(), atomic_rename=atomic_rename)
    checkpointer.save_checkpoint()
    over, problems, looks = threading.Event(), [], []

    def look():
        found = Run(2)
        try:
            while not over.is_set():
                listed = list_as_speechbrain(tmp_path)
                for one in listed:
                    load_as_speechbrain(one, found)
                looks.append(len(listed))
        except Exception as error:  # noqa: BLE001 - whatever a reader could meet
            problems.append(repr(error))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for _ in range(10):
            checkpointer.save_checkpoint()
        while not looks and not problems:
            reader.join(0.01)
    finally:
        over.set()
        reader.join()
    assert problems == []
    assert looks
    assert min(looks) >= 1


def test_a_directory_of_speechbrain_is_listed_as_speechbrain_does(tmp_path, speechbrain_run):
    """The lister of this module agrees with the checkpointer on a directory of SpeechBrain 1.1."""
    save = tmp_path / "save"
    shutil.copytree(speechbrain_run / "stopped", save)
    theirs = list_as_speechbrain(save)
    ours = Checkpointer(save).find_checkpoints()
    assert [path for path, _, _ in theirs] == [one.path for one in ours]
    assert [meta for _, meta, _ in theirs] == [one.meta for one in ours]
    assert [files for _, _, files in theirs] == [one.paramfiles for one in ours]


def test_a_damaged_legacy_file_is_passed_over(tmp_path):
    """It has no checksum, but a truncated file cannot be read to its end."""
    good = Run(1, steps=2)
    write_as_speechbrain(tmp_path, "good", {"unixtime": 1.0}, good, **LEGACY)
    bad = write_as_speechbrain(tmp_path, "bad", {"unixtime": 2.0}, Run(2, steps=2), **LEGACY)
    file = bad / "optimizer.ckpt"
    file.write_bytes(file.read_bytes()[:600])
    found = Run(3)
    loaded = Checkpointer(tmp_path, found.recoverables()).recover_if_possible()
    assert loaded.path.name == "CKPT+good"
    assert found.is_equal(good)
