"""Parameter groups that training adds to an optimizer are found by the names of parameters."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch

from brain_ckpt import Checkpointer, CheckpointMismatchError


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = torch.nn.Linear(3, 3)
        self.head = torch.nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.encoder(x))


def build(folder, parts=("head",)):
    """Return a model, an optimizer with a group for each part, and their checkpointer."""
    model = Net()
    groups = [{"params": list(getattr(model, part).parameters())} for part in parts]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    return model, optimizer, Checkpointer(folder, {"model": model, "optimizer": optimizer})


def step(model, optimizer):
    """Take one step on all parameters."""
    optimizer.zero_grad()
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()


def add_encoder(model, optimizer, **options):
    optimizer.add_param_group({"params": list(model.encoder.parameters()), **options})


def saved_with_encoder(folder):
    """Save after a step on the head, and one on both; return what was saved."""
    model, optimizer, checkpointer = build(folder)
    step(model, optimizer)
    add_encoder(model, optimizer, lr=0.01, weight_decay=0.5)
    step(model, optimizer)
    checkpointer.save_checkpoint()
    return model, optimizer, checkpointer


def same(one, other):
    """Return whether two optimizers have the same groups, options and moments."""
    a, b = one.state_dict(), other.state_dict()
    return a["param_groups"] == b["param_groups"] and all(
        torch.equal(value, b["state"][number][key])
        for number, entry in a["state"].items()
        for key, value in entry.items()
    )


def test_a_group_that_training_added_comes_back_with_its_options_and_moments(tmp_path):
    """The next step gives the same weights to the bit."""
    model, optimizer, _ = saved_with_encoder(tmp_path)
    resumed, other, checkpointer = build(tmp_path)
    checkpointer.recover_if_possible()
    assert len(other.param_groups) == 2
    assert other.param_groups[1]["params"][0] is resumed.encoder.weight
    assert same(optimizer, other)
    step(model, optimizer)
    step(resumed, other)
    assert all(map(torch.equal, model.parameters(), resumed.parameters()))


def test_groups_are_matched_by_names_in_whatever_order_they_were_made(tmp_path):
    """The optimizer gets the order of the checkpoint, and each parameter its own moments."""
    _, optimizer, _ = saved_with_encoder(tmp_path)
    resumed, other, checkpointer = build(tmp_path, ("encoder", "head"))
    checkpointer.recover_if_possible()
    assert same(optimizer, other)
    assert other.param_groups[0]["params"][0] is resumed.head.weight


def test_parameters_that_were_added_to_a_group_come_back(tmp_path):
    """A recipe may extend the first group instead of adding one."""
    model, optimizer, saving = build(tmp_path)
    optimizer.param_groups[0]["params"].extend(model.encoder.parameters())
    step(model, optimizer)
    saving.save_checkpoint()
    _, other, checkpointer = build(tmp_path)
    checkpointer.recover_if_possible()
    assert same(optimizer, other)


def test_a_parameter_of_no_saved_module_is_an_error_and_changes_nothing(tmp_path):
    """The error says which optimizer; the advice is to add the module."""
    _, optimizer, saving = build(tmp_path)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    saving.save_checkpoint()
    _, other, checkpointer = build(tmp_path)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(CheckpointMismatchError, match=re.escape("add_recoverable")):
        checkpointer.recover_if_possible()
    assert other.state_dict() == before


def test_a_group_that_the_checkpoint_does_not_have_is_an_error(tmp_path):
    """Its moments are unknown."""
    _, _, saving = build(tmp_path)
    saving.save_checkpoint()
    _, _, checkpointer = build(tmp_path, ("head", "encoder"))
    with pytest.raises(CheckpointMismatchError, match=r"\[2, 2\] parameters in its groups"):
        checkpointer.recover_if_possible()


def test_a_checkpoint_without_names_loads_by_the_order_of_parameters(tmp_path):
    """As SpeechBrain's and older ones; so does one whose names belong to renamed modules."""
    _, optimizer, saving = saved_with_encoder(tmp_path)
    path = saving.find_checkpoint().path
    names = json.loads((path / "parameter_names.json").read_text())
    assert names["optimizer"][1] == ["model.encoder.weight", "model.encoder.bias"]
    model = Net()
    other = torch.optim.AdamW(list(model.head.parameters()))
    add_encoder(model, other)
    other.load_state_dict(torch.load(path / "optimizer.ckpt", weights_only=True))
    assert same(optimizer, other)
    renamed = Checkpointer(tmp_path, {"optimizer": other, "net": model}, allow_partial_load=True)
    renamed.recover_if_possible(only=lambda name, _: name == "optimizer")
    assert same(optimizer, other)
