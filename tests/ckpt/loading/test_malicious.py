"""A file made to do harm does none."""

import json
import os
import pickle
import zipfile
import zlib

import pytest
import torch

from brain_ckpt import Checkpointer, CheckpointError, NoIntactCheckpointError, UnsafeCheckpointError


class Harm:
    """Unpickled, it makes a file."""

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
    """Edit a manifest and give it a checksum that fits, as an attacker can."""
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
    """Its checksum is right, so that it is the unpickler that has to refuse."""
    checkpointer, path = saved
    torch.save(
        {"weight": Harm(canary)}, path / "model.ckpt", _use_new_zipfile_serialization=not legacy
    )
    refit(path, "model.ckpt")
    with pytest.raises(UnsafeCheckpointError, match="trusted=True"):
        checkpointer.recover_if_possible()


def test_a_bare_pickle_is_refused(saved, canary):
    """A file that torch.save did not write at all."""
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
def test_a_tag_in_the_meta_file_runs_nothing(tag, saved, canary):
    """It is refused by its name."""
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
def test_a_manifest_names_no_path_outside_its_directory(name, saved):
    """However it spells it."""
    checkpointer, path = saved
    sign(path, lambda fields: fields["files"].update({name: {"size": 1, "chunks": ["0" * 8]}}))
    checkpoint = checkpointer.list_checkpoints()[0]
    with pytest.raises(UnsafeCheckpointError, match="own directory"):
        checkpointer.load_checkpoint(checkpoint)


def test_a_link_is_not_followed_when_loading(saved, tmp_path):
    """Neither a file that is one nor one on the way to it."""
    checkpointer, path = saved
    outside = tmp_path / "outside.ckpt"
    (path / "model.ckpt").rename(outside)
    (path / "model.ckpt").symlink_to(outside)
    with pytest.raises(NoIntactCheckpointError, match=r"model\.ckpt"):
        checkpointer.recover_if_possible()


def test_a_link_is_not_followed_when_deleting(saved, tmp_path):
    """What it points at stays."""
    checkpointer, path = saved
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "kept").write_text("kept")
    (path / "link").symlink_to(treasure)
    checkpointer.delete_checkpoints(num_to_keep=0)
    assert not path.exists()
    assert (treasure / "kept").read_text() == "kept"


def test_a_hook_that_makes_a_link_is_refused(tmp_path):
    """The checkpoint would be as safe as what it points at."""
    outside = tmp_path / "outside"
    outside.write_text("1")
    checkpointer = Checkpointer(tmp_path / "save")
    checkpointer.add_recoverable(
        "x", object(), lambda obj, path: None, lambda obj, path: path.symlink_to(outside)
    )
    with pytest.raises(CheckpointError, match="link"):
        checkpointer.save_checkpoint()


def test_a_zip_bomb_is_refused_unread(tmp_path, speechbrain_run):
    """torch.save never compresses."""
    path = tmp_path / "save" / "CKPT+bomb"
    path.mkdir(parents=True)
    (path / "CKPT.yaml").write_text("unixtime: 1.0\nend-of-epoch: true\n")
    with zipfile.ZipFile(path / "model.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", bytes(50_000_000))
    with pytest.raises(NoIntactCheckpointError, match=r"torch\.save did not write"):
        Checkpointer(tmp_path / "save", {"model": torch.nn.Linear(2, 2)}).recover_if_possible()


@pytest.mark.parametrize("name", ["CKPT.yaml", "MANIFEST.json"])
def test_an_endless_meta_file_is_refused_unread(name, saved):
    """A sparse file of a terabyte costs nothing to make."""
    checkpointer, path = saved
    os.truncate(path / name, 2**40)
    with pytest.raises(CheckpointError):
        checkpointer.recover_if_possible()


def test_trust_is_given_by_name_and_for_one_call(tmp_path):
    """A state that only unpickling can load is loaded where that is asked for."""

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
