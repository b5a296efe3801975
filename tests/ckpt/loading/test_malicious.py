"""Malicious files."""

import collections
import os
import pickle
import re
import zipfile

import pytest
import torch

from brain_ckpt import Checkpointer, CheckpointError, NoIntactCheckpointError, UnsafeCheckpointError


class Harm:
    """An object that creates a file when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (os.system, (f"touch {self.canary}",))


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


@pytest.fixture
def saved(tmp_path):
    model = torch.nn.Linear(2, 2)
    checkpointer = Checkpointer(tmp_path / "save", {"model": model})
    checkpoint = checkpointer.save_checkpoint(meta={"loss": 1.0})
    return checkpointer, checkpoint.path


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_runs_code_is_refused(legacy, saved, canary, manifests):
    """Its checksum is correct, so the unpickler must refuse it."""
    checkpointer, path = saved
    torch.save(
        {"weight": Harm(canary)}, path / "model.ckpt", _use_new_zipfile_serialization=not legacy
    )
    manifests.refit(path, "model.ckpt")
    with pytest.raises(UnsafeCheckpointError, match="trusted=True"):
        checkpointer.recover_if_possible()


def test_a_bare_pickle_is_refused(saved, canary, manifests):
    """The file was not written by torch.save."""
    checkpointer, path = saved
    (path / "model.ckpt").write_bytes(pickle.dumps(Harm(canary), protocol=2))
    manifests.refit(path, "model.ckpt")
    with pytest.raises(CheckpointError):
        checkpointer.recover_if_possible()


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch {}']",
        "!!python/object/new:os.system ['touch {}']",
        "!!python/name:os.system ''",
        "!!python/module:os ''",
        (
            "!!python/object/apply:numpy._core.multiarray.scalar\n"
            "  - !!python/object/apply:os.system ['touch {}']\n  - !!binary AAAAAAAA8D8="
        ),
    ],
)
def test_a_tag_in_the_meta_file_runs_no_code(tag, saved, canary):
    """The error names the tag."""
    checkpointer, path = saved
    (path / "CKPT.yaml").write_text(
        f"unixtime: 1.0\nend-of-epoch: true\nloss: {tag.format(canary)}\n"
    )
    (path / "MANIFEST.json").unlink()
    with pytest.raises(NoIntactCheckpointError, match="!!python/"):
        checkpointer.recover_if_possible()


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "/etc/passwd", "a/../../b", "", "a\\b", "./model.ckpt"]
)
def test_a_manifest_with_a_path_outside_its_directory_is_refused(name, saved, manifests):
    """Every spelling is refused."""
    checkpointer, path = saved
    manifests.sign(
        path, lambda fields: fields["files"].update({name: {"size": 1, "chunks": ["0" * 8]}})
    )
    checkpoint = checkpointer.list_checkpoints()[0]
    with pytest.raises(UnsafeCheckpointError, match="own directory"):
        checkpointer.load_checkpoint(checkpoint)


def test_a_link_is_not_followed_when_loading(saved, tmp_path):
    """Neither a linked file nor a linked directory is followed."""
    checkpointer, path = saved
    outside = tmp_path / "outside.ckpt"
    (path / "model.ckpt").rename(outside)
    (path / "model.ckpt").symlink_to(outside)
    with pytest.raises(NoIntactCheckpointError, match=r"model\.ckpt"):
        checkpointer.recover_if_possible()


def test_a_link_is_not_followed_when_deleting(saved, tmp_path):
    """The target of the link is kept."""
    checkpointer, path = saved
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "kept").write_text("kept")
    (path / "link").symlink_to(treasure)
    checkpointer.delete_checkpoints(num_to_keep=0)
    assert not path.exists()
    assert (treasure / "kept").read_text() == "kept"


def test_a_hook_that_makes_a_link_is_refused(tmp_path):
    """The target of a link could change later."""
    outside = tmp_path / "outside"
    outside.write_text("1")
    checkpointer = Checkpointer(tmp_path / "save")
    checkpointer.add_recoverable(
        "x", object(), lambda obj, path: None, lambda obj, path: path.symlink_to(outside)
    )
    with pytest.raises(CheckpointError, match="link"):
        checkpointer.save_checkpoint()


def test_a_zip_bomb_is_refused_unread(tmp_path, speechbrain_run):
    """torch.save never compresses files."""
    path = tmp_path / "save" / "CKPT+bomb"
    path.mkdir(parents=True)
    (path / "CKPT.yaml").write_text("unixtime: 1.0\nend-of-epoch: true\n")
    with zipfile.ZipFile(path / "model.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", bytes(50_000_000))
    with pytest.raises(NoIntactCheckpointError, match=r"torch\.save did not write"):
        Checkpointer(tmp_path / "save", {"model": torch.nn.Linear(2, 2)}).recover_if_possible()


@pytest.mark.parametrize("name", ["CKPT.yaml", "MANIFEST.json"])
def test_an_endless_meta_file_is_refused_unread(name, saved):
    """An attacker can make a sparse file of a terabyte."""
    checkpointer, path = saved
    os.truncate(path / name, 2**40)
    with pytest.raises(CheckpointError):
        checkpointer.recover_if_possible()


def test_trusted_applies_to_one_call(tmp_path, saved, manifests, states):
    """A state that needs unpickling is loaded only with trusted=True."""
    holder = states.Holder({"value": 1})
    checkpointer = Checkpointer(tmp_path / "trusted", {"holder": holder})
    path = checkpointer.save_checkpoint().path
    torch.save({"value": pytest.approx}, path / "holder.ckpt")  # any function
    manifests.refit(path, "holder.ckpt")
    with pytest.raises(UnsafeCheckpointError):
        checkpointer.recover_if_possible()
    checkpointer.recover_if_possible(trusted=True)
    assert holder.state == {"value": pytest.approx}


def test_the_error_of_an_unsafe_file_is_short(saved, canary, manifests):
    """It names the function, and has none of torch's advice."""
    checkpointer, path = saved
    torch.save({"weight": Harm(canary)}, path / "model.ckpt")
    manifests.refit(path, "model.ckpt")
    with pytest.raises(UnsafeCheckpointError) as caught:
        checkpointer.recover_if_possible()
    text = str(caught.value)
    assert "got posix.system; register a class" in text
    assert len(text) - len(str(path)) < 250
    assert not re.search("weights_only|WeightsUnpickler|Please", text)
    assert caught.value.__cause__ is None


def encoded(value, notes, cls=collections.OrderedDict):
    """Return a state with type notes of an attacker."""
    state = cls({"v": value})
    state._brain_ckpt_types = notes
    return state


@pytest.mark.parametrize(
    ("value", "note"),
    [
        (["touch {canary}"], [[0], "object", "os.system"]),
        (["call", ["touch {canary}"], {}, None, None, None], [[0], "object", "os.system"]),
        (["touch {canary}"], [[0], "global", "os.system"]),
        (1, [[0], "enum", "builtins.exec"]),
        (1, [[0], "no such type", None]),
        ("../../../etc/passwd", [[0], "zoneinfo", None]),
        (torch.zeros(8, dtype=torch.uint8), [[0], "numpy.array", ["|O", [1], "C"]]),
        (torch.zeros(8, dtype=torch.uint8), [[0], "numpy.array", [[["a", "|O"]], [1], "C"]]),
        (torch.zeros(8, dtype=torch.uint8), [[0], "numpy.array", ["<i8", [100], "C"]]),
        (bytes(8), [[0], "numpy.scalar", "|O"]),
        (None, [[0], "numpy.dtype", "|O"]),
        ([1, 2], [[0], "range", None]),
        ({"a": 1}, [[0], "defaultdict", "system"]),
        (1, [[0, 5], "set", None]),
        (1, [["x"], "set", None]),
        (1, "not a note"),
    ],
    ids=lambda value: str(value).replace(" ", "")[:40],
)
def test_a_crafted_type_note_is_refused(value, note, tmp_path, canary, manifests, states):
    """Notes can make values of known types only, and objects of registered classes."""
    checkpointer = Checkpointer(tmp_path / "save", {"holder": states.Holder({"value": 1})})
    path = checkpointer.save_checkpoint().path
    if isinstance(value, list):
        value = [
            [str(x).format(canary=canary) for x in part] if isinstance(part, list) else part
            for part in value
        ]
    torch.save(encoded(value, [note]), path / "holder.ckpt")
    manifests.refit(path, "holder.ckpt")
    with pytest.raises(
        UnsafeCheckpointError, match=r"holder\.ckpt (must have types|may hold objects)"
    ):
        checkpointer.recover_if_possible()
