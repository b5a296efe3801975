"""Tensors and arrays in meta."""

import json

import numpy as np
import pytest
import torch
import yaml

from brain_ckpt import Checkpointer

VALUES = {
    "tensor": torch.tensor([1.0, 2.0, 3.0]),
    "matrix": torch.arange(6).reshape(2, 3),
    "bfloat16": torch.tensor([0.1, 0.2], dtype=torch.bfloat16),
    "bool": torch.tensor([True, False]),
    "empty": torch.zeros(0, 3),
    "special": torch.tensor([float("inf"), float("-inf"), 0.1]),
    "array": np.array([0.1, 0.2], dtype="f4"),
    "integers": np.array([[1, 2], [3, 4]]),
    "strings": np.array(["a", "bc"]),
}


@pytest.fixture
def checkpointer(tmp_path):
    return Checkpointer(tmp_path, {"model": torch.nn.Linear(1, 1)})


@pytest.mark.parametrize("name", VALUES)
def test_an_array_in_meta_comes_back_as_it_was(name, checkpointer, states):
    """From every way to get a checkpoint."""
    meta = {"value": VALUES[name], "nested": {"list": [1, VALUES[name]]}, "loss": 0.5}
    saved = checkpointer.save_checkpoint(meta)
    found = checkpointer.find_checkpoint(min_key="loss")
    assert found == saved
    for one in (saved, found, checkpointer.recover_if_possible()):
        assert states.same(one.meta["value"], VALUES[name])
        assert states.same(one.meta["nested"]["list"][1], VALUES[name])


def test_the_meta_file_holds_nested_lists(checkpointer):
    """Any YAML loader reads it, SpeechBrain's too."""
    path = checkpointer.save_checkpoint({"value": torch.tensor([[1.0, 2.0]])}).path
    read = yaml.safe_load((path / "CKPT.yaml").read_text())
    assert read["value"] == [[1.0, 2.0]]
    assert set(read) == {"value", "unixtime", "end-of-epoch"}


def test_the_test_of_speechbrain_passes(checkpointer):
    """Its unit test compares the loaded tensor with the saved one."""
    saved = checkpointer.save_checkpoint(meta={"loss": torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])})
    loaded = checkpointer.recover_if_possible()
    assert saved.meta["loss"].allclose(loaded.meta["loss"])


def test_a_tensor_of_one_element_is_a_number(checkpointer):
    """It can be a metric."""
    checkpointer.save_checkpoint({"loss": torch.tensor([0.5])})
    checkpointer.save_checkpoint({"loss": np.float32(0.25)})
    assert checkpointer.find_checkpoint(min_key="loss").meta["loss"] == 0.25


def test_a_tensor_is_copied_at_the_save(checkpointer):
    """A later change of the tensor does not reach the meta."""
    value = torch.zeros(2)
    saved = checkpointer.save_checkpoint({"value": value})
    value += 1
    assert saved.meta["value"].tolist() == [0.0, 0.0]


def test_a_meta_that_could_not_be_read_again_is_refused(checkpointer, tmp_path):
    """The meta file has a limit of a megabyte."""
    with pytest.raises(ValueError, match="must be at most"):
        checkpointer.save_checkpoint({"value": torch.zeros(400_000)})
    assert not list(tmp_path.glob("CKPT*"))


def test_the_command_shows_arrays_in_meta(checkpointer, tmp_path, capsys):
    """As lists in JSON, and without comparing them as numbers."""
    from brain_ckpt.cli.main import main

    first = checkpointer.save_checkpoint({"value": torch.tensor([1.0, 2.0])}).path
    second = checkpointer.save_checkpoint({"value": torch.tensor([1.0, 3.0])}).path
    assert main(["ls", "--json", str(tmp_path)]) == 0
    newest = json.loads(capsys.readouterr().out)["checkpoints"][0]
    assert newest["metrics"] == {"value": [1.0, 3.0]}
    assert main(["diff", str(first), str(second)]) == 0
    assert "meta value: tensor([1., 2.]) -> tensor([1., 3.])" in capsys.readouterr().out
