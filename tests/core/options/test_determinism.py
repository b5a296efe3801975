"""`--deterministic`: which flags it sets and restores, and what it reports."""

from __future__ import annotations

import logging
import os
import warnings

import pytest
import torch

import brain_core.options.compute
import brain_core.options.determinism
from brain_core import Brain, parse_arguments, seed_everything
from brain_core.options.determinism import prepare_determinism


class Flags(Brain):
    """Records torch's flags while it trains and evaluates."""

    def compute_forward(self, batch, stage):
        self.seen[stage.name] = flags()
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        return torch.nn.functional.mse_loss(predictions, batch[1])


class NondeterministicOperation(Flags):
    """Uses an operation that has no deterministic implementation."""

    def compute_forward(self, batch, stage):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
        return super().compute_forward(batch, stage)


def flags():
    """Return torch's flags for deterministic algorithms."""
    cudnn = torch.backends.cudnn
    return (
        torch.get_deterministic_debug_mode(),
        cudnn.deterministic,
        cudnn.benchmark,
    )


@pytest.fixture(autouse=True)
def _hash_seed(monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "0")


@pytest.fixture
def train(pairs):
    """Return a function that trains and evaluates a Brain of this class."""

    def run(cls=Flags, **run_opts):
        brain = cls(
            {"model": torch.nn.Linear(4, 2)},
            lambda p: torch.optim.SGD(p, lr=0.1),
            run_opts={"device": "cpu", **run_opts},
        )
        brain.seen = {}
        brain.fit(range(2), pairs, pairs)
        brain.evaluate(pairs)
        return brain

    return run


def test_the_flags_are_set_in_training_and_evaluation_and_restored(train):
    """The flags, including cuDNN's, are set in training, validation and test."""
    before = flags()
    seen = train(deterministic=True).seen
    assert seen == dict.fromkeys(("TRAIN", "VALID", "TEST"), (1, True, False))
    assert flags() == before


def test_the_flags_are_restored_when_training_fails(train):
    """The flags and the warning filters are restored after an exception."""

    class Failing(Flags):
        def compute_forward(self, batch, stage):
            raise ArithmeticError

    before = (flags(), warnings.showwarning, list(warnings.filters))
    with pytest.raises(ArithmeticError):
        train(Failing, deterministic=True)
    assert (flags(), warnings.showwarning, list(warnings.filters)) == before


def test_no_flag_is_set_without_the_option(train):
    """Without the option, the flags in training are those outside of it."""
    before = flags()
    assert train().seen["TRAIN"] == before


def test_a_stricter_setting_of_the_user_is_kept(train):
    """An operation without a deterministic implementation still raises if the user set that."""
    torch.use_deterministic_algorithms(mode=True)
    try:
        assert train(deterministic=True).seen["TRAIN"][0] == 2
        assert torch.get_deterministic_debug_mode() == 2
    finally:
        torch.use_deterministic_algorithms(mode=False)


def test_an_operation_without_deterministic_implementation_is_named_once(train, caplog):
    """The operation is run and logged once by fit and once by evaluate."""
    train(NondeterministicOperation, deterministic=True)
    named = [r.message for r in caplog.records if "the operation" in r.message]
    assert named == ["Could not be made deterministic: the operation put_."] * 2  # fit, evaluate


def test_other_warnings_are_shown(train):
    """Only torch's warnings about determinism are captured."""

    class Gap(Flags):
        def compute_forward(self, batch, stage):
            warnings.warn("mind the gap", UserWarning, stacklevel=1)
            return super().compute_forward(batch, stage)

    with pytest.warns(UserWarning, match="mind the gap"):
        train(Gap, deterministic=True)


def test_an_unset_hash_seed_is_reported(monkeypatch, caplog):
    """PYTHONHASHSEED takes effect only before Python starts, so it is reported if unset."""
    monkeypatch.delenv("PYTHONHASHSEED")
    (report,) = prepare_determinism("cpu")
    assert "the order of sets of strings, which PYTHONHASHSEED decides" in report
    assert report in caplog.text


def test_uninitialized_memory_and_autotuning_are_reported(monkeypatch):
    """Settings of the user that are not deterministic are reported and kept."""
    assert prepare_determinism("cpu", "default") == []
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    memory, autotuning = prepare_determinism("cpu", "max-autotune")
    assert "fill_uninitialized_memory is off" in memory
    assert "max-autotune" in autotuning


class TestWithCuda:
    """The checks for CUDA, with CUDA's availability simulated."""

    @pytest.fixture(autouse=True)
    def _simulate_cuda(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")

    @pytest.mark.parametrize("device", [None, "cuda", "cuda:1"])
    def test_the_cublas_variable_is_set(self, device):
        """The variable is set before CUDA is in use, and nothing is reported."""
        assert prepare_determinism(device) == []
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"

    def test_a_cublas_variable_that_is_set_too_late_is_reported(self, monkeypatch):
        """The report contains the variable and the value to set."""
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        (report,) = prepare_determinism("cuda")
        assert "CUDA was in use before CUBLAS_WORKSPACE_CONFIG was set: set it to :4096:8" in report

    @pytest.mark.parametrize(("setting", "problems"), [(":16:8", 0), (":0:0", 1)])
    def test_the_users_cublas_variable_is_kept(self, monkeypatch, setting, problems):
        """A value of the user is kept, and reported if it is not reproducible."""
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", setting)
        assert len(prepare_determinism("cuda")) == problems
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == setting

    def test_the_cublas_variable_is_not_set_for_other_devices(self):
        """On the CPU the variable has no effect and is not set."""
        prepare_determinism("cpu")
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_the_command_line_prepares_determinism_first(monkeypatch):
    """`--deterministic` takes effect before a device is chosen."""
    order = []
    choose = brain_core.options.compute.choose_device
    monkeypatch.setattr(
        brain_core.options.compute,
        "prepare_determinism",
        lambda *args: order.append(("prepare", *args)),
    )
    monkeypatch.setattr(
        brain_core.options.compute, "choose_device", lambda d: order.append("choose") or choose(d)
    )
    Brain(run_opts=parse_arguments(["train.yaml", "--deterministic", "--device=cpu"])[1])
    assert order == [("prepare", "cpu", None), "choose"]


def test_seed_everything_sets_the_flags_permanently(caplog):
    """seed_everything(deterministic=True) sets torch's and cuDNN's flags, as in SpeechBrain."""
    cudnn = torch.backends.cudnn
    former = (cudnn.deterministic, cudnn.benchmark)
    cudnn.benchmark = True
    try:
        with caplog.at_level(logging.INFO):
            seed_everything(1, deterministic=True)
        assert flags() == (2, True, False)
    finally:
        torch.use_deterministic_algorithms(mode=False)
        cudnn.deterministic, cudnn.benchmark = former
