"""Profiling, compiling and scripting."""

from __future__ import annotations

import json

import pytest
import torch

from brain_ckpt import Checkpointer


def sgd(parameters):
    """Return an SGD optimizer."""
    return torch.optim.SGD(parameters, lr=0.1)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_profiler_writes_its_trace_and_training_continues(regression, pairs, tmp_path):
    """The trace is written and training finishes; SpeechBrain 1.1 called quit()."""
    brain = regression(
        {"model": torch.nn.Linear(4, 2)},
        sgd,
        {"output_folder": tmp_path},
        {"profile_training": True, "profile_warmup": 1, "profile_steps": 2, "device": "cpu"},
    )
    brain.fit(range(2), pairs)
    assert brain.optimizer_step == 2 * len(pairs)
    (trace,) = (tmp_path / "profiler_logs").glob("*.json")
    assert any(
        "mse_loss" in event.get("name", "")
        for event in json.loads(trace.read_text())["traceEvents"]
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own use of it
def test_compiling_changes_no_key_of_the_state_dict(regression, pairs, tmp_path):
    """A checkpoint can be loaded whether or not the module was compiled."""
    model = torch.nn.Linear(4, 2)
    keys = list(model.state_dict())
    brain = regression(
        {"model": model},
        sgd,
        run_opts={"compile": True, "device": "cpu"},
        checkpointer=Checkpointer(tmp_path, {"model": model}),
    )
    with torch.compiler.set_stance("force_eager"):
        brain.fit(range(1), pairs)
    assert brain.modules.model is model
    assert model._compiled_call_impl is not None
    assert list(brain.modules.model.state_dict()) == keys


def test_a_scripted_module_trains_the_parameters_of_the_checkpointer(regression, pairs, tmp_path):
    """A scripted module shares its parameters with the module that it replaces."""
    model = torch.nn.Linear(4, 2)
    checkpointer = Checkpointer(tmp_path, {"model": model})
    brain = regression(
        {"model": model, "other": torch.nn.Linear(1, 1)},
        sgd,
        run_opts={"jit": True, "jit_module_keys": ["model"], "device": "cpu"},
        checkpointer=checkpointer,
    )
    before = model.weight.detach().clone()
    brain.fit(range(1), pairs)
    assert isinstance(brain.modules.model, torch.jit.ScriptModule)
    assert not isinstance(brain.modules.other, torch.jit.ScriptModule)
    assert not torch.equal(model.weight, before)


def test_raw_modules_are_the_given_modules(regression):
    """A module may be named "module"; in SpeechBrain 1.1 it replaced raw_modules."""
    model = torch.nn.Linear(4, 2)
    brain = regression({"module": model})
    assert brain.raw_modules.module is model
