"""Malicious files."""

import json
import os
import pickle
import zipfile
import zlib

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


def sign(path, change):
    """Edit a manifest and update its checksum, as an attacker can."""
    file = path / "MANIFEST.json"
    fields = json.loads(file.read_text())
    change(fields)
    fields.pop("crc32")
    body = json.dumps(fields, indent=1)
    file.write_text(f'{body[:-2]},\n "crc32": "{zlib.crc32(body.encode()):08x}"\n}}\n')


def refit(path, name):
    content = (path / name).read_bytes()
    entry = {"size": len(content), "chunks": [f"{zlib.crc32(content):08x}"]}
    sign(path, lambda fields: fields["files"].update({name: entry}))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_runs_code_is_refused(legacy, saved, canary):
    """Its checksum is correct, so the unpickler must refuse it."""
    checkpointer, path = saved
    torch.save(
        {"weight": Harm(canary)}, path / "model.ckpt", _use_new_zipfile_serialization=not legacy
    )
    refit(path, "model.ckpt")
    with pytest.raises(UnsafeCheckpointError, match="trusted=True"):
        checkpointer.recover_if_possible()


def test_a_bare_pickle_is_refused(saved, canary):
    """The file was not written by torch.save."""
    checkpointer, path = saved
    (path / "model.ckpt").write_bytes(pickle.dumps(Harm(canary), protocol=2))
    refit(path, "model.ckpt")
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
def test_a_manifest_with_a_path_outside_its_directory_is_refused(name, saved):
    """Every spelling is refused."""
    checkpointer, path = saved
    sign(path, lambda fields: fields["files"].update({name: {"size": 1, "chunks": ["0" * 8]}}))
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


def test_trusted_applies_to_one_call(tmp_path):
    """A state that needs unpickling is loaded only with trusted=True."""

    class Holder:
        value = None

        def state_dict(self):
            return {"value": self.value}

        def load_state_dict(self, state):
            self.value = state["value"]

    holder = Holder()
    holder.value = pytest.approx  # any function
    checkpointer = Checkpointer(tmp_path, {"holder": holder})
    checkpointer.save_checkpoint()
    holder.value = None
    with pytest.raises(UnsafeCheckpointError):
        checkpointer.recover_if_possible()
    checkpointer.recover_if_possible(trusted=True)
    assert holder.value is pytest.approx
