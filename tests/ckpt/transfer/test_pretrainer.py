"""Pretrained parameters: collected from where they are, and loaded into what there is."""

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


@pytest.fixture
def source(tmp_path):
    """A directory with the file of a model of ones, and one of an optimizer."""
    folder = tmp_path / "source"
    folder.mkdir()
    torch.save(ones().state_dict(), folder / "model.ckpt")
    return folder


def ones():
    """A model that can be told from a new one."""
    model = torch.nn.Linear(2, 1)
    torch.nn.init.ones_(model.weight)
    torch.nn.init.ones_(model.bias)
    return model


def is_ones(model):
    """Say whether the parameters were taken over."""
    return all(bool((parameter == 1).all()) for parameter in model.parameters())


def flip(file):
    """Flip a bit of the last tensor's bytes, wherever they are."""
    content = bytearray(file.read_bytes())
    place = content.rindex(torch.ones(1).numpy().tobytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_a_module_is_loaded_from_where_its_file_is(source):
    """Without a directory to collect in, nothing is copied."""
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
    """As links or as copies; a second collection changes nothing."""
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


def test_the_strategy_may_be_speechbrains_enum_and_no_other_word(source, tmp_path):
    """By the name of its member."""
    strategies = enum.Enum("LocalStrategy", ["SYMLINK", "COPY", "COPY_SKIP_CACHE", "NO_LINK"])
    pretrainer = Pretrainer(tmp_path / "in", {"model": torch.nn.Linear(2, 1)})
    found = pretrainer.collect_files(source, local_strategy=strategies.NO_LINK)
    assert found == {"model": source / "model.ckpt"}
    with pytest.raises(ValueError, match="local_strategy is 'symlink', 'copy' or 'no_link', got"):
        pretrainer.collect_files(source, local_strategy="hardlink")


def test_what_was_collected_before_can_be_loaded_alone(source, tmp_path):
    """By the ranks that did not collect, or by a later run."""
    Pretrainer(tmp_path / "in", {"model": ones()}).collect_files(source)
    model = torch.nn.Linear(2, 1)
    Pretrainer(tmp_path / "in", {"model": model}).load_collected()
    assert is_ones(model)
    local = Pretrainer(loadables={"model": model}, paths={"model": source / "model.ckpt"})
    torch.nn.init.zeros_(model.weight)
    local.load_collected()
    assert is_ones(model)


def test_a_collected_link_that_has_moved_is_followed_anew(source, tmp_path):
    """The path says which file; what an earlier run collected gives way."""
    pretrainer = Pretrainer(tmp_path / "in", {"model": torch.nn.Linear(2, 1)})
    pretrainer.collect_files(source)
    other = tmp_path / "other"
    shutil.copytree(source, other)
    pretrainer.collect_files(other)
    assert (tmp_path / "in" / "model.ckpt").resolve() == other / "model.ckpt"


def test_conditions_leave_objects_alone(source):
    """Values or functions; their files are not even looked for."""
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


def test_an_object_is_loaded_in_its_own_way(source):
    """A custom hook, a transfer method, a loader, a state; a tokenizer loads itself."""
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


def test_parts_that_do_not_match_are_warned_of(source, caplog):
    """A missing parameter and one too many; what fits is taken."""
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(1, 1)})
    torch.save({"a.weight": torch.ones(1, 1), "b.weight": torch.ones(1)}, source / "part.ckpt")
    with caplog.at_level(logging.WARNING):
        torch_parameter_transfer(model, source / "part.ckpt")
    assert model["a"].weight.item() == 1
    assert "has no parameters for 'a.bias'" in caplog.text
    assert "knows no 'b.weight'" in caplog.text


def test_a_shape_that_does_not_match_is_an_error(source):
    """Which names the key and both shapes."""
    with pytest.raises(CheckpointMismatchError, match=r"weight(.|\n)*\[1, 2\](.|\n)*\[1, 3\]"):
        torch_parameter_transfer(torch.nn.Linear(3, 1), source / "model.ckpt")


def test_a_file_in_a_checkpoint_is_compared_with_its_manifest(tmp_path):
    """When it is collected, and when it is loaded; through a link, too."""
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


def test_a_file_alone_is_compared_with_its_own_checksums(source):
    """Those of the zip, which torch.load does not look at."""
    flip(source / "model.ckpt")
    with pytest.raises(CheckpointDamagedError, match="CRC"):
        torch_parameter_transfer(torch.nn.Linear(2, 1), source / "model.ckpt")


def test_a_pretrained_file_runs_no_code(source):
    """A custom hook may do what it likes; nothing of ours unpickles more than tensors."""
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
            "a URL is collected into a directory, got 'memory://",
        ),
    ],
)
def test_a_file_that_cannot_be_had_is_named(options, error, message):
    """With what to do about it."""
    with pytest.raises(error, match=message):
        Pretrainer(loadables={"model": torch.nn.Linear(2, 1)}, **options).collect_files()


def test_loading_before_collecting_is_an_error(tmp_path):
    """With or without a directory."""
    loadables = {"model": torch.nn.Linear(2, 1)}
    with pytest.raises(ValueError, match=r"collected before it is loaded, got none for 'model'"):
        Pretrainer(loadables=loadables).load_collected()
    with pytest.raises(FileNotFoundError, match="the file for 'model' has to be there"):
        Pretrainer(tmp_path, loadables).load_collected()


def test_one_missing_file_changes_no_object(source, tmp_path):
    """Each is there before the first is loaded."""
    models = {"model": torch.nn.Linear(2, 1), "lm": torch.nn.Linear(2, 1)}
    Pretrainer(tmp_path / "in", {"model": models["model"]}).collect_files(source)
    with pytest.raises(FileNotFoundError, match="'lm'"):
        Pretrainer(tmp_path / "in", models).load_collected()
    assert not is_ones(models["model"])


def test_a_name_with_a_separator_is_refused(tmp_path):
    """It would lead out of the directory."""
    with pytest.raises(ValueError, match="name of a loadable"):
        Pretrainer(tmp_path, {"../model": torch.nn.Linear(1, 1)})


def test_a_url_is_downloaded_once(source, tmp_path):
    """Any that fsspec knows; another URL replaces the file."""
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
        ("carrier://pigeon/model.ckpt", ValueError, "a URL is one that fsspec can read, got"),
    ],
)
def test_a_download_that_fails_leaves_nothing(url, error, message, tmp_path):
    """Not half a file either."""
    pytest.importorskip("fsspec")
    pretrainer = Pretrainer(tmp_path, {"model": torch.nn.Linear(2, 1)}, {"model": url})
    with pytest.raises(error, match=message):
        pretrainer.collect_files()
    assert list(tmp_path.iterdir()) == []


def test_a_url_without_its_extra_says_which(tmp_path, monkeypatch):
    """And what to install."""
    monkeypatch.setitem(sys.modules, "fsspec", None)
    pretrainer = Pretrainer(tmp_path, {"model": torch.nn.Linear(1, 1)}, {"model": "s3://a/b"})
    with pytest.raises(ImportError, match=r"pip install 'brain-ckpt\[fsspec\]'"):
        pretrainer.collect_files()


def test_a_path_is_split_as_in_speechbrain():
    """Into the source and the name of the file."""
    assert Pretrainer.split_path("a/b/lm.ckpt") == ("a/b", "lm.ckpt")
    assert Pretrainer.split_path("lm.ckpt") == ("./", "lm.ckpt")
    assert Pretrainer.split_path("hf://user/repo/lm.ckpt") == ("hf://user/repo", "lm.ckpt")
