"""Collecting and loading pretrained parameters."""

import enum
import logging
import shutil
import sys

import pytest
import torch

from brain_ckpt import (
    CheckpointDamagedError,
    Checkpointer,
    CheckpointMismatchError,
    Pretrainer,
    UnsafeCheckpointError,
    mark_as_loader,
    mark_as_transfer,
    torch_parameter_transfer,
)
from brain_ckpt.storage.layout import old_name


@pytest.fixture
def source(tmp_path):
    """Return a directory with the files of a model of ones and of an optimizer."""
    folder = tmp_path / "source"
    folder.mkdir()
    torch.save(ones().state_dict(), folder / "model.ckpt")
    return folder


def ones():
    """Return a model with other parameters."""
    model = torch.nn.Linear(2, 1)
    torch.nn.init.ones_(model.weight)
    torch.nn.init.ones_(model.bias)
    return model


def is_ones(model):
    """Return whether the parameters were loaded."""
    return all(bool((parameter == 1).all()) for parameter in model.parameters())


def flip(file):
    """Flip a bit of the last tensor."""
    content = bytearray(file.read_bytes())
    place = content.rindex(torch.ones(1).numpy().tobytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_a_module_is_loaded_from_its_path(source):
    """Without collect_in nothing is copied."""
    model = torch.nn.Linear(2, 1)
    pretrainer = Pretrainer(
        loadables={"encoder": model}, paths={"encoder": str(source / "model.ckpt")}
    )
    assert pretrainer.collect_files() == {"encoder": source / "model.ckpt"}
    assert not is_ones(model)
    pretrainer.load_collected()
    assert is_ones(model)


@pytest.mark.parametrize("strategy", ["symlink", "copy", "COPY_SKIP_CACHE"])
def test_files_are_collected_under_the_names_of_their_objects(strategy, source, tmp_path):
    """They are links or copies, and collecting again changes nothing."""
    model = torch.nn.Linear(2, 1)
    pretrainer = Pretrainer(tmp_path / "a" / "b", {"encoder": model})
    pretrainer.add_paths({"encoder": source / "model.ckpt"})
    for _ in range(2):
        found = pretrainer.collect_files(local_strategy=strategy)
    target = tmp_path / "a" / "b" / "encoder.ckpt"
    assert found == {"encoder": target}
    assert target.is_symlink() == (strategy == "symlink")
    assert [path.name for path in target.parent.iterdir()] == ["encoder.ckpt"]
    pretrainer.load_collected()
    assert is_ones(model)


def test_the_strategy_can_be_speechbrains_enum(source, tmp_path):
    """The name of the member counts."""
    strategies = enum.Enum("LocalStrategy", ["SYMLINK", "COPY", "COPY_SKIP_CACHE", "NO_LINK"])
    pretrainer = Pretrainer(tmp_path / "in", {"model": torch.nn.Linear(2, 1)})
    found = pretrainer.collect_files(source, local_strategy=strategies.NO_LINK)
    assert found == {"model": source / "model.ckpt"}
    with pytest.raises(
        ValueError, match="local_strategy must be 'symlink', 'copy' or 'no_link', got"
    ):
        pretrainer.collect_files(source, local_strategy="hardlink")


def test_a_collected_file_can_be_loaded_without_collecting_again(source, tmp_path):
    """Other ranks and later runs load it."""
    Pretrainer(tmp_path / "in", {"model": ones()}).collect_files(source)
    model = torch.nn.Linear(2, 1)
    Pretrainer(tmp_path / "in", {"model": model}).load_collected()
    assert is_ones(model)
    local = Pretrainer(loadables={"model": model}, paths={"model": source / "model.ckpt"})
    torch.nn.init.zeros_(model.weight)
    local.load_collected()
    assert is_ones(model)


def test_a_changed_path_replaces_the_collected_link(source, tmp_path):
    """The path decides, not the file that an earlier run collected."""
    pretrainer = Pretrainer(tmp_path / "in", {"model": torch.nn.Linear(2, 1)})
    pretrainer.collect_files(source)
    other = tmp_path / "other"
    shutil.copytree(source, other)
    pretrainer.collect_files(other)
    assert (tmp_path / "in" / "model.ckpt").resolve() == other / "model.ckpt"


def test_objects_with_a_false_condition_are_skipped(source):
    """Conditions are values or functions, and the files of skipped objects are not needed."""
    models = {name: torch.nn.Linear(2, 1) for name in ("yes", "no", "never")}
    pretrainer = Pretrainer(
        loadables=models,
        paths={"yes": str(source / "model.ckpt")},
        conditions={"yes": True, "no": False},
    )
    pretrainer.add_conditions({"never": lambda: False})
    assert list(pretrainer.collect_files()) == ["yes"]
    pretrainer.load_collected()
    assert [name for name in models if is_ones(models[name])] == ["yes"]


def test_each_object_is_loaded_by_its_own_method(source):
    """It is a custom hook, a transfer method, a loader, a state, or the method of a tokenizer."""
    told = []

    class Transfers:
        @mark_as_transfer
        def take(self, path):
            told.append(("transfer", path.name))

        @mark_as_loader
        def load(self, path, end_of_epoch):
            raise AssertionError

    class Loads:
        @mark_as_loader
        def load(self, path, end_of_epoch):
            told.append(("loader", end_of_epoch))

    class Tokenizer:
        __module__ = "sentencepiece.wrapper"

        def load(self, path):
            told.append(("tokenizer", path))

    Tokenizer.__name__ = "SentencePieceProcessor"
    optimizer = torch.optim.SGD(torch.nn.Linear(2, 1).parameters(), lr=0.5)
    torch.save(
        torch.optim.SGD(torch.nn.Linear(2, 1).parameters(), lr=0.25).state_dict(),
        source / "optimizer.ckpt",
    )
    (source / "text.ckpt").write_text("a text")
    pretrainer = Pretrainer(
        loadables={
            "custom": Loads(),
            "transfers": Transfers(),
            "loads": Loads(),
            "tokenizer": Tokenizer(),
            "optimizer": optimizer,
        },
        paths=dict.fromkeys(
            ("custom", "transfers", "loads", "tokenizer"), str(source / "text.ckpt")
        ),
    )
    pretrainer.add_custom_hooks({"custom": lambda obj, path: told.append(path.read_text())})
    pretrainer.collect_files(default_source=source)
    pretrainer.load_collected()
    assert told == [
        "a text",
        ("transfer", "text.ckpt"),
        ("loader", False),
        ("tokenizer", str(source / "text.ckpt")),
    ]
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_parameters_that_do_not_match_are_logged(source, caplog):
    """Missing and unexpected parameters are logged, and the others are loaded."""
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(1, 1)})
    torch.save({"a.weight": torch.ones(1, 1), "b.weight": torch.ones(1)}, source / "part.ckpt")
    with caplog.at_level(logging.WARNING):
        torch_parameter_transfer(model, source / "part.ckpt")
    assert model["a"].weight.item() == 1
    assert "has no value for 'a.bias'" in caplog.text
    assert "has 'b.weight', which" in caplog.text


def test_a_mismatched_shape_is_an_error(source):
    """The error names the key and both shapes."""
    with pytest.raises(CheckpointMismatchError, match=r"weight(.|\n)*\[1, 2\](.|\n)*\[1, 3\]"):
        torch_parameter_transfer(torch.nn.Linear(3, 1), source / "model.ckpt")


def test_a_file_in_a_checkpoint_is_compared_with_its_manifest(tmp_path):
    """It is compared when collected and when loaded, also through a link."""
    saved = Checkpointer(tmp_path / "save", {"model": ones()}).save_checkpoint()
    model = torch.nn.Linear(2, 1)
    pretrainer = Pretrainer(tmp_path / "in", {"model": model})
    pretrainer.collect_files(saved.path)
    pretrainer.load_collected()
    assert is_ones(model)
    flip(saved.paramfiles["model"])
    with pytest.raises(CheckpointDamagedError, match=r"model\.ckpt must be intact"):
        pretrainer.load_collected()
    with pytest.raises(CheckpointDamagedError, match=r"model\.ckpt must be intact"):
        Pretrainer(tmp_path / "copies", {"model": model}).collect_files(
            saved.path, local_strategy="copy"
        )


@pytest.mark.parametrize("kept", [True, False])
def test_a_replacement_between_collecting_and_loading_is_followed(kept, tmp_path):
    """Files are collected beside a renamed old checkpoint, which is gone when they are loaded."""
    checkpointer = Checkpointer(tmp_path / "save", {"model": ones()})
    path = checkpointer.save_checkpoint(name="best").path
    renamed = path.with_name(old_name(path.name, "another run"))
    path.rename(renamed)
    model = torch.nn.Linear(2, 1)
    pretrainer = Pretrainer(loadables={"model": model}, paths={"model": str(path / "model.ckpt")})
    assert pretrainer.collect_files() == {"model": path / "model.ckpt"}
    if not kept:
        renamed.rename(path)
    pretrainer.load_collected()
    assert is_ones(model)


def test_a_missing_file_to_transfer_is_an_error_at_once(tmp_path):
    """It is not taken for a checkpoint that is being replaced."""
    with pytest.raises(FileNotFoundError, match=r"typo\.ckpt"):
        torch_parameter_transfer(torch.nn.Linear(2, 1), tmp_path / "typo.ckpt")


def test_a_file_alone_is_compared_with_its_own_checksums(source):
    """Those of the zip, which torch.load does not look at."""
    flip(source / "model.ckpt")
    with pytest.raises(CheckpointDamagedError, match="CRC"):
        torch_parameter_transfer(torch.nn.Linear(2, 1), source / "model.ckpt")


def test_a_pretrained_file_runs_no_code(source):
    """Only a custom hook of the user can run code."""
    torch.save({"weight": shutil.rmtree}, source / "model.ckpt")
    pretrainer = Pretrainer(loadables={"model": torch.nn.Linear(2, 1)})
    pretrainer.collect_files(source)
    with pytest.raises(UnsafeCheckpointError, match="tensors and plain values only"):
        pretrainer.load_collected()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, r"path or a default_source, got neither for 'model'; add paths="),
        (
            {"paths": {"model": "speechbrain/asr/model.ckpt"}},
            FileNotFoundError,
            r"got 'speechbrain/asr/model\.ckpt'; correct its path .*hf://",
        ),
        (
            {"paths": {"model": "memory://model.ckpt"}},
            ValueError,
            "a URL must be collected into a directory, got 'memory://",
        ),
    ],
)
def test_a_missing_source_is_named(options, error, message):
    """The error says what to do."""
    with pytest.raises(error, match=message):
        Pretrainer(loadables={"model": torch.nn.Linear(2, 1)}, **options).collect_files()


def test_loading_before_collecting_is_an_error(tmp_path):
    """This holds with and without collect_in."""
    loadables = {"model": torch.nn.Linear(2, 1)}
    with pytest.raises(ValueError, match=r"collected before it is loaded, got none for 'model'"):
        Pretrainer(loadables=loadables).load_collected()
    with pytest.raises(FileNotFoundError, match="the file for 'model' must exist"):
        Pretrainer(tmp_path, loadables).load_collected()


def test_a_missing_file_changes_no_object(source, tmp_path):
    """All files are checked before the first is loaded."""
    models = {"model": torch.nn.Linear(2, 1), "lm": torch.nn.Linear(2, 1)}
    Pretrainer(tmp_path / "in", {"model": models["model"]}).collect_files(source)
    with pytest.raises(FileNotFoundError, match="'lm'"):
        Pretrainer(tmp_path / "in", models).load_collected()
    assert not is_ones(models["model"])


def test_a_name_with_a_separator_is_refused(tmp_path):
    """The file would be outside the directory."""
    with pytest.raises(ValueError, match="name of a loadable"):
        Pretrainer(tmp_path, {"../model": torch.nn.Linear(1, 1)})


def test_a_url_is_downloaded_once(source, tmp_path):
    """Any URL of fsspec can be used, and another URL replaces the file."""
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/zoo/model.ckpt", (source / "model.ckpt").read_bytes())
    model = torch.nn.Linear(2, 1)
    pretrainer = Pretrainer(tmp_path / "in", {"model": model})
    pretrainer.collect_files("memory://zoo")
    pretrainer.load_collected()
    assert is_ones(model)
    memory.pipe("/zoo/model.ckpt", b"another")
    pretrainer.collect_files("memory://zoo")
    pretrainer.load_collected()
    memory.pipe("/zoo2/model.ckpt", b"another")
    pretrainer.collect_files("memory://zoo2")
    assert (tmp_path / "in" / "model.ckpt").read_bytes() == b"another"


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("memory://zoo/nothing.ckpt", FileNotFoundError, "got 'memory://zoo/nothing.ckpt'"),
        ("carrier://pigeon/model.ckpt", ValueError, "a URL must be readable by fsspec, got"),
    ],
)
def test_a_failed_download_leaves_no_file(url, error, message, tmp_path):
    """No partial file is left."""
    pytest.importorskip("fsspec")
    pretrainer = Pretrainer(tmp_path, {"model": torch.nn.Linear(2, 1)}, {"model": url})
    with pytest.raises(error, match=message):
        pretrainer.collect_files()
    assert list(tmp_path.iterdir()) == []


def test_a_url_without_the_extra_names_it(tmp_path, monkeypatch):
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "fsspec", None)
    pretrainer = Pretrainer(tmp_path, {"model": torch.nn.Linear(1, 1)}, {"model": "s3://a/b"})
    with pytest.raises(ImportError, match=r"pip install 'brain-ckpt\[fsspec\]'"):
        pretrainer.collect_files()


def test_a_path_is_split_as_in_speechbrain():
    """The parts are the directory and the file name."""
    assert Pretrainer.split_path("a/b/lm.ckpt") == ("a/b", "lm.ckpt")
    assert Pretrainer.split_path("lm.ckpt") == ("./", "lm.ckpt")
    assert Pretrainer.split_path("hf://user/repo/lm.ckpt") == ("hf://user/repo", "lm.ckpt")
