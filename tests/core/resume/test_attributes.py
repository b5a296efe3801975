"""What a recipe keeps in attributes, and changes in training."""

from __future__ import annotations

import logging
import random
from collections import OrderedDict, deque

import numpy as np
import pytest
import torch

from brain_ckpt import Checkpointer
from brain_core import Brain
from brain_core.resume.attributes import AttributeState
from brain_core.resume.plain_values import from_saved, mark_of, size_of, to_saved


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the loop may catch it."""


class Metric:
    """An accumulator without a state of its own."""

    def __init__(self):
        self.values = []


class Masked(torch.nn.Module):
    """Draws masks from a pool by a counter, neither of which is in its state_dict."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)
        self.count = 0
        self.register_buffer("pool", torch.rand(7, 3), persistent=False)

    def forward(self, x):
        self.count += 1
        if self.count % 4 == 0:
            self.pool = torch.rand(7, 3)
        return self.linear(x) * self.pool[self.count % 7]


class Recipe(Brain):
    """Every kind of attribute takes part in the loss."""

    kill_at = None

    def on_stage_start(self, stage, epoch=None):
        self.right = 0

    def on_fit_start(self):
        super().on_fit_start()
        self.temperature = 1.0
        self.history = []
        self.average = torch.zeros(3)
        self.table = {"sum": np.zeros(3), "last": (0, 0.0)}
        self.draw = random.Random(3)
        self.generator = np.random.default_rng(4)

    def compute_forward(self, batch, stage):
        return self.modules.model(batch)

    def compute_objectives(self, predictions, batch, stage):
        self.temperature *= 0.9
        self.right += 1
        self.hparams.ramp += 0.1
        self.history.append(predictions.sum().item())
        self.average.mul_(0.9).add_(predictions.detach().mean(0))
        self.table["sum"] += batch.mean(0).numpy()
        self.table["last"] = (self.step, self.right + 0.5)
        noise = self.draw.random() + self.generator.random()
        scale = sum(self.history) + self.average.sum() + self.table["sum"].sum()
        scale = scale + self.table["last"][1] + self.right + self.hparams.ramp
        return (predictions * self.temperature + noise * scale).square().mean()

    def fit_batch(self, batch):
        loss = super().fit_batch(batch)
        if self.optimizer_step == self.kill_at:
            raise Killed
        return loss


def make(folder, kill_at=None, cls=Recipe, **options):
    """Return a run over six batches an epoch."""
    torch.manual_seed(0)
    brain = cls(
        {"model": Masked()},
        lambda p: torch.optim.SGD(p, lr=0.01),
        {"ramp": 0.0},
        {"device": "cpu", "ckpt_interval_steps": 2, **options},
        Checkpointer(folder),
    )
    brain.kill_at = kill_at
    data = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    loading = {"batch_size": 2, "shuffle": True}
    brain.train = lambda: brain.fit(range(1, 4), data, train_loader_kwargs=loading)
    return brain


def killed(folder, kill_at, **options):
    """Kill a run, and return it as it is started again."""
    brain = make(folder, kill_at, **options)
    with pytest.raises(Killed):
        brain.train()
    brain.checkpointer.close()
    return make(folder, **options)


@pytest.mark.parametrize("kill_at", [3, 7, 12, 17])
def test_a_run_killed_anywhere_ends_with_the_weights_of_an_undisturbed_one(tmp_path, kill_at):
    """Its loss depends on attributes of the Brain, of hparams and of a module."""
    whole = make(tmp_path / "whole")
    whole.train()
    again = killed(tmp_path / "killed", kill_at)
    again.train()
    for one, other in zip(whole.modules.parameters(), again.modules.parameters(), strict=True):
        assert torch.equal(one, other)
    assert again.history == whole.history
    assert again.modules.model.count == whole.modules.model.count


def test_the_line_about_resuming_names_the_attributes(tmp_path, caplog):
    """Also those of modules."""
    again = killed(tmp_path, 5)
    with caplog.at_level(logging.INFO):
        again.train()
    (line,) = [r.message for r in caplog.records if r.message.startswith("Resuming from")]
    assert "Attributes: self.right, self.temperature, self.history, " in line
    assert "hparams.ramp" in line
    assert "modules.model.count, modules.model.pool." in line
    assert line.endswith("The run continues bit for bit.")


@pytest.mark.parametrize(
    ("option", "restored"), [(False, set()), (["temperature"], {"temperature"})]
)
def test_attributes_are_recovered_as_the_option_says(tmp_path, option, restored):
    """None of them, or those that are named."""
    again = killed(tmp_path, 5, recover_attributes=option)
    values = {}
    hook = again.on_fit_batch_start
    again.on_fit_batch_start = lambda *a: (
        values.setdefault("temperature", again.temperature),
        values.setdefault("history", list(again.history)),
        hook(*a),
    )
    again.train()
    assert (values["temperature"] != 1.0) == ("temperature" in restored)
    assert values["history"] == []


def test_an_object_that_changes_and_cannot_be_saved_is_named_once(tmp_path, caplog):
    """At the first save, and again where a run resumes without it."""

    class Measured(Recipe):
        def on_stage_start(self, stage, epoch=None):
            super().on_stage_start(stage, epoch)
            self.metric = Metric()

        def compute_objectives(self, predictions, batch, stage):
            self.metric.values.append(1)
            return super().compute_objectives(predictions, batch, stage)

    with caplog.at_level(logging.INFO):
        again = killed(tmp_path, 5, cls=Measured)
    said = [r.message for r in caplog.records if "No checkpoint holds" in r.message]
    assert len(said) == 1
    assert "self.metric (Metric), which training changes" in said[0]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        again.train()
    (line,) = [r.message for r in caplog.records if r.message.startswith("Resuming from")]
    assert "Changed in training, in no checkpoint: self.metric (Metric)." in line
    assert "bit for bit" not in line


def test_a_value_larger_than_a_megabyte_is_named_and_not_saved():
    """It would be in each checkpoint."""

    class Owner:
        pass

    owner = Owner()
    state = AttributeState()
    state.begin({"self": (owner, frozenset())})
    owner.large, owner.small = torch.ones(2**19), torch.ones(2)
    saved = state.state_dict()
    assert list(saved["values"]["self"]) == ["small"]
    assert saved["left_out"] == ["self.large (Tensor)"]


def test_what_did_not_change_is_not_saved():
    """A tokenizer, a table of constants."""

    class Owner:
        pass

    owner = Owner()
    owner.vocabulary, owner.metric = {"a": 1}, Metric()
    state = AttributeState()
    state.begin({"self": (owner, frozenset())})
    assert state.state_dict() == {"values": {}, "left_out": []}


VALUES = [
    None,
    True,
    7,
    0.1,
    1 + 2j,
    "text",
    b"bytes",
    [1, [2.0, "three"]],
    (1, (2,)),
    {1, 2},
    frozenset({"a"}),
    deque([1, 2], maxlen=3),
    OrderedDict(a=1),
    {"nested": {"tensor": torch.arange(3), "array": np.arange(3.0)}},
    np.float32(0.5),
    np.array(["a", "b"]),
    torch.tensor([1.5, float("nan")]),
]


@pytest.mark.parametrize(
    "value", VALUES, ids=[f"{type(v).__name__}-{i}" for i, v in enumerate(VALUES)]
)
def test_a_plain_value_comes_back_as_the_type_it_was(value):
    """And as a copy, which later changes do not reach."""
    again = from_saved(to_saved(value), None)
    assert type(again) is type(value)
    assert mark_of(again) == mark_of(value)
    assert size_of(value) is not None


@pytest.mark.parametrize(
    "make_generator", [lambda: random.Random(1), lambda: np.random.default_rng(1)]
)
def test_a_generator_continues_where_it_was(make_generator):
    """The object stays the one that the recipe holds."""
    generator, present = make_generator(), make_generator()
    generator.random()
    saved, due = to_saved(generator), generator.random()
    again = from_saved(saved, present)
    assert again is present
    assert again.random() == due


def test_a_tensor_with_a_graph_cannot_be_saved():
    """It belongs to a backward that is over."""
    value = torch.ones(2, requires_grad=True) * 2
    assert (size_of(value), mark_of(value)) == (None, None)
