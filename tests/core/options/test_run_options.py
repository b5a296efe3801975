"""Options from code, hyperparameters and dicts, and which values are refused."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest

from brain_core import Brain, RunOptions


def test_run_opts_override_hparams_and_hparams_override_defaults():
    """Each option is read from the first of these sources that contains it."""
    brain = Brain(
        hparams={"precision": "bf16", "max_grad_norm": 1.0}, run_opts={"precision": "fp32"}
    )
    assert (brain.precision, brain.max_grad_norm, brain.nonfinite_patience) == ("fp32", 1.0, 3)


def test_an_options_object_overrides_even_with_default_values():
    """Options of a RunOptions override hparams; SpeechBrain 1.1 ignored them."""
    assert Brain(run_opts=RunOptions(precision="bf16", device="cpu")).precision == "bf16"
    brain = Brain(hparams={"precision": "bf16"}, run_opts=RunOptions(precision="fp32"))
    assert brain.precision == "fp32"


def test_options_read_like_a_mapping():
    """Recipes can index, unpack and call get on run options."""
    options = RunOptions(device="cpu")
    assert options["device"] == options.get("device") == dict(options.items())["device"] == "cpu"
    assert options.get("seed", 7) == 7
    assert "device" in options
    assert "seed" not in options
    assert set(options) == set(options.keys()) == set(dict(options))
    with pytest.raises(KeyError):
        options["seed"]


def test_options_survive_copying_and_pickling():
    """Copied and pickled options equal the original."""
    options = RunOptions(precision="bf16")
    assert copy.deepcopy(options) == pickle.loads(pickle.dumps(options)) == options


def test_an_unknown_option_is_refused_with_the_nearest_known_one():
    """A misspelt key is an error that suggests the nearest option."""
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
def test_a_bad_value_is_refused_with_required_and_given_value(options, message):
    """The error is the same for run options and hyperparameters."""
    with pytest.raises(ValueError, match=message):
        Brain(run_opts=options)
    with pytest.raises(ValueError, match=message):
        Brain(hparams=options)


@pytest.mark.parametrize("option", ["precision", "eval_precision"])
def test_fp16_on_the_cpu_is_refused_with_advice(option):
    """fp16 on the CPU is an error that suggests bf16."""
    with pytest.raises(ValueError, match="Use --precision=bf16 or --eval_precision=bf16"):
        Brain(run_opts={option: "fp16", "device": "cpu"})


@pytest.mark.parametrize("device", ["cpu", "cpu:0", "meta"])
def test_any_device_of_torch_has_a_device_type(device):
    """Every torch device has a type; SpeechBrain 1.1 had one for cpu and cuda only."""
    brain = Brain(run_opts={"device": device})
    assert (brain.device, brain.device_type) == (device, device.split(":")[0])


def test_a_missing_gpu_is_refused_with_advice():
    """The error is raised before any module is moved."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(
        ValueError, match=r"needs a GPU, and torch sees none\. Run with --device cpu"
    ):
        Brain(run_opts={"device": "cuda:0"})


def test_deprecated_precision_options_are_read_with_a_warning(caplog):
    """--bfloat16_mix_prec still selects bf16."""
    with caplog.at_level(logging.WARNING):
        assert Brain(run_opts={"bfloat16_mix_prec": True, "device": "cpu"}).precision == "bf16"
    assert "--precision=bf16" in caplog.text
