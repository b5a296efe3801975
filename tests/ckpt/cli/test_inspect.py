"""The functions behind the command."""

import math

import pytest
import torch

from brain_ckpt import Checkpointer
from brain_ckpt.cli.diff import compare, distance
from brain_ckpt.cli.file_checks import check_files
from brain_ckpt.cli.inspect import checkpoint_path, read_directory, step_of
from brain_ckpt.cli.output import (
    format_age,
    format_meta_value,
    format_number,
    format_size,
    to_json_value,
)
from brain_ckpt.errors import UsageError
from brain_ckpt.loading.contents import entries
from brain_ckpt.loading.state_file import open_state_file, read_state_file
from brain_ckpt.storage.checksum import CHUNK_BYTES
from brain_ckpt.storage.listing import read_checkpoint
from brain_ckpt.storage.opened import open_checkpoint


class State:
    """An object with a given state."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


@pytest.fixture
def saved(tmp_path):
    """Return a function that saves a state and returns its checkpoint."""

    def saves(state, name="one", **meta):
        checkpointer = Checkpointer(tmp_path / "save", {"state": State(state)})
        checkpoint = checkpointer.save_checkpoint(meta, name=name)
        checkpointer.close()
        return checkpoint

    return saves


def compared(first, second):
    """Compare two checkpoints."""
    with open_checkpoint(first.path) as left, open_checkpoint(second.path) as right:
        return compare(left, right)


def checked(checkpoint, *arguments):
    """Return what was found in each file of a checkpoint."""
    with open_checkpoint(checkpoint.path) as opened:
        return list(check_files(opened, *arguments))


def step(path):
    """Return the step of a checkpoint."""
    with open_checkpoint(path) as opened:
        return step_of(opened)


def changes(comparison):
    """Return the differences by key, without their file."""
    return {one.key: (one.change, one.max_abs, one.relative) for one in comparison.differences}


def test_states_are_flattened_by_key_and_index():
    """A list of plain values is one value."""
    state = {"a": {"b": torch.ones(2)}, "groups": [{"lr": 0.1, "params": [0, 1]}], "empty": {}}
    assert [entry.key for entry in entries(state)] == [
        "a.b",
        "groups.0.lr",
        "groups.0.params",
        "empty",
    ]
    assert [entry.value for entry in entries("text")] == ["text"]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]), (0.5, 0.1)),
        (torch.tensor([1, 2]), torch.tensor([1, 4]), (2.0, 2 / math.sqrt(5))),
        (torch.tensor(2.0), torch.tensor(2.5), (0.5, 0.25)),
        (torch.zeros(2), torch.ones(2), (1.0, math.inf)),
        (torch.tensor([3 + 4j]), torch.tensor([3 + 1j]), (3.0, 0.6)),
        (torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.5]), (0.5, 0.5)),
        (torch.tensor([False, True]), torch.tensor([True, True]), (1.0, 1.0)),
        (torch.ones(0), torch.ones(0), (0.0, 0.0)),
        (torch.ones(2).to_sparse(), torch.tensor([1.0, 2.0]).to_sparse(), (1.0, 1 / math.sqrt(2))),
    ],
)
def test_a_distance_is_the_largest_change_and_its_relative_norm(before, after, expected):
    """Distances are computed in float64 for any dtype."""
    from brain_ckpt.cli.diff import _dense

    assert distance(_dense(before), _dense(after)) == pytest.approx(expected)


def test_a_nan_equals_itself_and_no_number(saved):
    """Values are compared by their bits."""
    nan = torch.tensor([1.0, math.nan])
    same = compared(saved({"w": nan}), saved({"w": nan.clone()}, "two"))
    assert (same.differences, same.equal) == ([], 1)
    found = changes(compared(saved({"w": nan}), saved({"w": torch.ones(2)}, "two")))
    assert math.isnan(found["w"][1])


def test_missing_values_and_other_shapes_have_no_distance(saved):
    """A changed dtype has a distance."""
    before = saved({"gone": 1, "shape": torch.ones(2), "dtype": torch.ones(2), "lr": 0.5, "t": "a"})
    after = saved(
        {"new": 1, "shape": torch.ones(3), "dtype": torch.ones(2).half(), "lr": 0.25, "t": "b"},
        "two",
    )
    assert changes(compared(before, after)) == {
        "gone": ("only in A", None, None),
        "new": ("only in B", None, None),
        "shape": ("changed", None, None),
        "dtype": ("changed", 0.0, 0.0),
        "lr": ("changed", 0.25, 0.5),
        "t": ("changed", None, None),
    }


def test_a_missing_recoverable_is_one_difference(saved, tmp_path):
    """The difference is named by the file."""
    before = saved({"w": 1})
    other = Checkpointer(tmp_path / "other", {"state": State({"w": 1}), "lm": State({"x": 1})})
    found = compared(before, other.save_checkpoint())
    assert [(one.file, one.key, one.change) for one in found.differences] == [
        ("lm.ckpt", "", "only in B")
    ]


def test_damage_is_located_by_chunk(saved):
    """The damage names the chunk of the file."""
    checkpoint = saved({"w": torch.zeros(CHUNK_BYTES // 4 + 1000)})
    file = checkpoint.paramfiles["state"]
    with file.open("r+b") as content:
        content.seek(CHUNK_BYTES + 5)
        content.write(b"\xff")
    read = []
    problems = [check.problem for check in checked(checkpoint, read.append) if check.problem]
    assert problems == ["state.ckpt is damaged: the crc32 of chunk 2 of 2 is wrong"]
    assert sum(read) >= file.stat().st_size


def test_a_damaged_manifest_is_reported_alone(saved):
    """Without a manifest nothing can be compared."""
    checkpoint = saved({"w": 1})
    manifest = checkpoint.path / "MANIFEST.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"seq": 1', b'"seq": 2'))
    (check,) = checked(checkpoint)
    assert "does not match its own checksum" in check.problem


def test_a_single_file_is_compared_with_the_manifest_of_its_directory(saved):
    """Averages and pretrained parameters verify one file only."""
    checkpoint = saved({"w": torch.ones(100)})
    file = checkpoint.paramfiles["state"]
    with open_state_file(file) as verified:
        assert verified.path.read_bytes() == file.read_bytes()
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    with pytest.raises(RuntimeError, match=r"must be intact, got damage: state\.ckpt is damaged"):
        read_state_file(file, "state")


def test_the_step_comes_from_the_manifest_the_meta_or_the_brain(saved, speechbrain_run):
    """The Brain of SpeechBrain writes its step as YAML."""
    assert step(saved({"w": 1}).path) is None
    assert step(saved({"w": 1}, step=7).path) == 7
    newest = next((speechbrain_run / "stopped").glob("*+00"))
    assert step(newest) == 72


def test_a_renamed_checkpoint_is_found_by_its_path(saved, tmp_path):
    """A renamed or copied directory is recognized as a checkpoint."""
    checkpoint = saved({"w": 1})
    kept = checkpoint.path.rename(tmp_path / "best")
    assert read_checkpoint(checkpoint_path(kept)).meta == checkpoint.meta
    assert [one.path for one in read_directory(kept).checkpoints] == [kept]
    with pytest.raises(UsageError, match=r"a directory without CKPT\.yaml"):
        checkpoint_path(tmp_path)
    with pytest.raises(UsageError, match="which is a file"):
        read_directory(kept / "CKPT.yaml")


def test_numbers_sizes_and_ages_are_formatted_briefly():
    """Values that JSON cannot hold become strings."""
    assert [format_number(value) for value in (0.1234567, 3, "a")] == ["0.123457", "3", "a"]
    assert [format_size(value) for value in (0, 999, 1500, 2.5e9, 1e18)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.5 GB",
        "1000.0 PB",
    ]
    assert [format_age(value) for value in (0.1, 5, 90, 7200, 200000, -60)] == [
        "now",
        "5 s",
        "2 min",
        "2 h",
        "2 d",
        "in the future",
    ]
    assert format_meta_value("unixtime", 86400.5).endswith(" (86400.5)")
    assert to_json_value({1: (math.nan, torch.float32)}) == {"1": ["nan", "torch.float32"]}
