"""Options from code, hyperparameters and a dict, and what is refused."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest

from brain_core import Brain, RunOptions


def test_run_opts_go_before_hparams_and_hparams_before_defaults():
    """Each option is taken from the first place that gives it."""
    brain = Brain(
        hparams={"precision": "bf16", "max_grad_norm": 1.0}, run_opts={"precision": "fp32"}
    )
    assert (brain.precision, brain.max_grad_norm, brain.nonfinite_patience) == ("fp32", 1.0, 3)


def test_an_options_object_counts_as_given_even_where_it_equals_the_default():
    """Reference row: RunOptions(precision=...) was silently ignored."""
    assert Brain(run_opts=RunOptions(precision="bf16", device="cpu")).precision == "bf16"
    brain = Brain(hparams={"precision": "bf16"}, run_opts=RunOptions(precision="fp32"))
    assert brain.precision == "fp32"


def test_options_read_like_a_mapping():
    """Recipes index run options, ask for defaults, and unpack them."""
    options = RunOptions(device="cpu")
    assert options["device"] == options.get("device") == dict(options.items())["device"] == "cpu"
    assert options.get("seed", 7) == 7
    assert "device" in options
    assert "seed" not in options
    assert set(options) == set(options.keys()) == set(dict(options))
    with pytest.raises(KeyError):
        options["seed"]


def test_options_survive_copying_and_pickling():
    """They are sent to workers and kept beside results."""
    options = RunOptions(precision="bf16")
    assert copy.deepcopy(options) == pickle.loads(pickle.dumps(options)) == options


def test_an_unknown_option_is_refused_with_the_nearest_known_one():
    """A misspelt key does not train with the default."""
    with pytest.raises(ValueError, match=r"got 'precison'. Did you mean 'precision'\?"):
        Brain(run_opts={"precison": "bf16"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "precision must be one of 'fp32', 'fp16', 'bf16', got 'fp8'"),
        ({"debug": "yes"}, "debug must be a bool, got 'yes'"),
        ({"grad_accumulation_factor": 0}, "grad_accumulation_factor must be 1 or more, got 0"),
        ({"grad_accumulation_factor": 1.5}, "grad_accumulation_factor must be an int, got 1.5"),
        ({"max_grad_norm": "1e-3"}, "max_grad_norm must be a number, got '1e-3'"),
        ({"optimizer_step_limit": True}, "optimizer_step_limit must be an int, got True"),
        (
            {"ckpt_interval_minutes": 1, "ckpt_interval_steps": 2},
            "ckpt_interval_minutes and ckpt_interval_steps exclude each other, got 1 and 2",
        ),
        ({"data_parallel_backend": True}, "torchrun --standalone --nproc-per-node"),
        ({"device": "gpu"}, "device must be one that torch knows .* got 'gpu'"),
    ],
)
def test_a_bad_value_is_refused_with_what_is_required_and_what_was_got(options, message):
    """It does not matter whether it comes from run options or from hyperparameters."""
    with pytest.raises(ValueError, match=message):
        Brain(run_opts=options)
    with pytest.raises(ValueError, match=message):
        Brain(hparams=options)


@pytest.mark.parametrize("option", ["precision", "eval_precision"])
def test_fp16_on_the_cpu_is_refused_with_advice(option):
    """Reference behaviour: use bf16 there."""
    with pytest.raises(ValueError, match="Use --precision=bf16 or --eval_precision=bf16"):
        Brain(run_opts={option: "fp16", "device": "cpu"})


@pytest.mark.parametrize("device", ["cpu", "cpu:0", "meta"])
def test_any_device_of_torch_has_a_device_type(device):
    """Reference row: AttributeError device_type for all but cpu and cuda."""
    brain = Brain(run_opts={"device": device})
    assert (brain.device, brain.device_type) == (device, device.split(":")[0])


def test_a_gpu_that_is_not_there_is_refused_with_advice():
    """Before any module is moved."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(
        ValueError, match=r"needs a GPU, and torch sees none\. Run with --device cpu"
    ):
        Brain(run_opts={"device": "cuda:0"})


def test_older_spellings_of_precision_are_read_with_a_warning(caplog):
    """--bfloat16_mix_prec still means bf16."""
    with caplog.at_level(logging.WARNING):
        assert Brain(run_opts={"bfloat16_mix_prec": True, "device": "cpu"}).precision == "bf16"
    assert "--precision=bf16" in caplog.text
