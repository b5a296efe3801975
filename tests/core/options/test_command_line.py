"""The command line: options, overrides, and errors."""

from __future__ import annotations

import pytest
import yaml

from brain_core import RunOptions, parse_arguments


def overrides(*words):
    """Return the overrides of a command line as a dict."""
    return yaml.safe_load(parse_arguments(["train.yaml", *words])[2])


def test_options_are_parsed_and_all_other_arguments_are_overrides():
    """The file, the options and the overrides are returned as in SpeechBrain."""
    argv = ["train.yaml", "--device", "cpu", "--seed", "10", "--ckpt_interval_steps=7"]
    filename, options, rest = parse_arguments(argv)
    assert (filename, options.device, options.ckpt_interval_steps) == ("train.yaml", "cpu", 7)
    assert {"device", "ckpt_interval_steps"} <= options.overridden_args
    assert rest == "seed: 10"
    assert RunOptions.from_command_line_args(argv)[1] == options


def test_an_abbreviated_option_is_an_override():
    """Options are not abbreviated; SpeechBrain 1.1 read --test=x as --test_only."""
    _, options, rest = parse_arguments(["train.yaml", "--test=x"])
    assert (options.test_only, rest) == (False, "test: x")


def test_a_value_keeps_its_equals_signs():
    """An equals sign in a value is kept; SpeechBrain 1.1 replaced it by a space."""
    assert overrides("--name=a=b", "--query", "x==y") == {"name": "a=b", "query": "x==y"}


@pytest.mark.parametrize("word", ["--no-debug", "--debug=false", "--debug=False", "--debug=no"])
def test_a_flag_that_hyperparameters_turn_on_can_be_turned_off(word):
    """The command line turns off a flag that hparams turn on; SpeechBrain 1.1 could not."""
    options = parse_arguments(["train.yaml", word])[1]
    assert not RunOptions.resolve(options, {"debug": True}).debug


def test_a_flag_needs_no_value():
    """The argument after a flag is not read as its value."""
    filename, options, _ = parse_arguments(["--debug", "train.yaml"])
    assert (filename, options.debug) == ("train.yaml", True)


def test_a_value_that_would_break_the_yaml_is_quoted():
    """A value with special YAML characters is read as one value."""
    assert overrides("--note=a: b", "--list=[1, 2]", "--nothing=") == {
        "note": "a: b",
        "list": [1, 2],
        "nothing": "",
    }


def test_references_and_negative_numbers_are_kept_as_written():
    """HyperPyYAML resolves references later."""
    assert parse_arguments(["t.yaml", "--path=!ref <dir>/x", "--low", "-1.5"])[2] == (
        "path: !ref <dir>/x\nlow: -1.5"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--test-only"], r"it needs a value: --test-only=value. Did you mean 'test_only'\?"),
        (["loose"], "an override is written --name=value, got 'loose'"),
        (["--precision", "fp8"], "invalid choice: 'fp8'"),
        (["--ckpt_interval_steps=2", "--ckpt_interval_minutes=1"], "exclude each other"),
    ],
)
def test_an_invalid_command_line_is_refused(words, message, capsys):
    """The usage is printed and the exit code is 2."""
    import re

    with pytest.raises(SystemExit) as exit_:
        parse_arguments(["train.yaml", *words])
    assert exit_.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_every_option_has_a_help_text(capsys):
    """The help contains each option with its text from the docstring."""
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "--nonfinite_patience INT=3 The number of batches of an epoch" in words
    for option in set(RunOptions().keys()) - {
        "overridden_args",
        "param_file",
        "distributed_launch",
        "data_parallel_count",
        "tqdm_barcolor",
    }:
        assert f"--{option} " in words


def test_the_options_of_the_command_line_are_frozen():
    """Adding or removing an option requires a change of this test."""
    assert sorted(RunOptions().keys()) == sorted(
        [
            "accept_changes",
            "auto_mix_prec",
            "bfloat16_mix_prec",
            "ckpt_interval_minutes",
            "ckpt_interval_patience",
            "ckpt_interval_steps",
            "compile",
            "compile_mode",
            "compile_module_keys",
            "compile_using_dynamic_shape_tracing",
            "compile_using_fullgraph",
            "data_parallel_backend",
            "data_parallel_count",
            "debug",
            "debug_batches",
            "debug_epochs",
            "debug_persistently",
            "deterministic",
            "device",
            "distributed_backend",
            "distributed_launch",
            "elastic",
            "eval_precision",
            "find_unused_parameters",
            "grad_accumulation_factor",
            "hang_seconds",
            "jit",
            "jit_module_keys",
            "log_config",
            "max_grad_norm",
            "mirror",
            "mirror_grace_seconds",
            "nonfinite_patience",
            "noprogressbar",
            "optimizer_step_limit",
            "overridden_args",
            "parallel",
            "param_file",
            "precision",
            "profile_steps",
            "profile_training",
            "profile_warmup",
            "recover_attributes",
            "remove_vector_weight_decay",
            "resume_anyway",
            "resume_from",
            "shard_evaluation",
            "shard_loaders",
            "skip_nonfinite_grads",
            "stop_after_minutes",
            "test_only",
            "tqdm_barcolor",
            "tqdm_colored_bar",
            "trusted",
        ]
    )


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--x=#c"], "#c"),
        (["--x=a # b"], "a # b"),
        (["--x="], ""),
        (["--x=[64,", "100,", "128]"], [64, 100, 128]),
        (["--x", "[64,", "100,", "128]"], [64, 100, 128]),
        (["--x=1", "--x=2"], 2),
    ],
)
def test_a_value_is_what_was_typed(words, value):
    """A hash is no comment, nothing is an empty string, a list may have blanks, the last counts."""
    assert overrides(*words) == {"x": value}


def test_a_misspelt_run_option_is_suspected(caplog):
    """It may be a hyperparameter, so it is only a warning."""
    assert overrides("--precison=fp16") == {"precison": "fp16"}
    assert "Did you mean 'precision'?" in caplog.text
