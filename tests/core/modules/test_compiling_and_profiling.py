"""Profiling, compiling and scripting."""

from __future__ import annotations

import json

import pytest
import torch

from brain_ckpt import Checkpointer


def sgd(parameters):
    """Make an optimizer."""
    return torch.optim.SGD(parameters, lr=0.1)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_profiler_writes_its_trace_and_training_goes_on(regression, pairs, tmp_path):
    """Reference row: it left the process by quit()."""
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


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_compiling_changes_no_key_of_the_state_dict(regression, pairs, tmp_path):
    """So that a checkpoint fits whether the module was compiled or not."""
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


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_scripted_module_trains_the_parameters_that_the_checkpointer_knows(
    regression, pairs, tmp_path
):
    """It stands in for the module and shares its parameters."""
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


def test_raw_modules_are_what_was_given(regression):
    """Reference row: a module named "module" hijacked them."""
    model = torch.nn.Linear(4, 2)
    brain = regression({"module": model})
    assert brain.raw_modules.module is model
