"""`--deterministic`: what it sets, what it puts back, and what it says it could not do."""

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
    """Notes torch's flags while it trains and evaluates."""

    def compute_forward(self, batch, stage):
        self.seen[stage.name] = flags()
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        return torch.nn.functional.mse_loss(predictions, batch[1])


class Putting(Flags):
    """Uses an operation that has no deterministic implementation."""

    def compute_forward(self, batch, stage):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
        return super().compute_forward(batch, stage)


def flags():
    """Return the flags in question."""
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
    """Return a function that trains and evaluates such a Brain."""

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


def test_the_flags_are_set_within_a_training_and_put_back_after_it(train):
    """In training, validation and test; cuDNN's too."""
    before = flags()
    seen = train(deterministic=True).seen
    assert seen == dict.fromkeys(("TRAIN", "VALID", "TEST"), (1, True, False))
    assert flags() == before


def test_the_flags_are_put_back_when_training_fails(train):
    """An error is no reason to leave them."""

    class Failing(Flags):
        def compute_forward(self, batch, stage):
            raise ArithmeticError

    before = (flags(), warnings.showwarning, list(warnings.filters))
    with pytest.raises(ArithmeticError):
        train(Failing, deterministic=True)
    assert (flags(), warnings.showwarning, list(warnings.filters)) == before


def test_nothing_is_set_unasked(train):
    """The flags in training are those outside of it."""
    before = flags()
    assert train().seen["TRAIN"] == before


def test_what_the_user_asked_of_torch_is_not_weakened(train):
    """An operation without a deterministic implementation raises, as it did."""
    torch.use_deterministic_algorithms(mode=True)
    try:
        assert train(deterministic=True).seen["TRAIN"][0] == 2
        assert torch.get_deterministic_debug_mode() == 2
    finally:
        torch.use_deterministic_algorithms(mode=False)


def test_an_operation_that_has_no_deterministic_implementation_is_named_once(train, caplog):
    """By training and by evaluation; it runs all the same."""
    train(Putting, deterministic=True)
    named = [r.message for r in caplog.records if "the operation" in r.message]
    assert named == ["Could not be made deterministic: the operation put_."] * 2  # fit, evaluate


def test_other_warnings_are_shown_as_ever(train):
    """Only torch's of this kind are taken."""

    class Gap(Flags):
        def compute_forward(self, batch, stage):
            warnings.warn("mind the gap", UserWarning, stacklevel=1)
            return super().compute_forward(batch, stage)

    with pytest.warns(UserWarning, match="mind the gap"):
        train(Gap, deterministic=True)


def test_a_hash_seed_that_is_not_set_is_listed(monkeypatch, caplog):
    """It is decided before Python starts."""
    monkeypatch.delenv("PYTHONHASHSEED")
    (said,) = prepare_determinism("cpu")
    assert "the order of sets of strings, which PYTHONHASHSEED decides" in said
    assert said in caplog.text


def test_uninitialized_memory_and_autotuning_are_listed(monkeypatch):
    """They are the user's own choice."""
    assert prepare_determinism("cpu", "default") == []
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    said = prepare_determinism("cpu", "max-autotune")
    assert ["fill_uninitialized_memory is off" in said[0], "max-autotune" in said[1]] == [True] * 2


class TestWithCuda:
    """What concerns CUDA, on a machine that pretends to have it."""

    @pytest.fixture(autouse=True)
    def _pretend(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")

    @pytest.mark.parametrize("device", [None, "cuda", "cuda:1"])
    def test_the_variable_of_cublas_is_set(self, device):
        """In time, nothing is left to say."""
        assert prepare_determinism(device) == []
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"

    def test_a_variable_that_comes_too_late_is_listed(self, monkeypatch):
        """With what to do."""
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        (said,) = prepare_determinism("cuda")
        assert "CUDA was in use before CUBLAS_WORKSPACE_CONFIG was set: set it to :4096:8" in said

    @pytest.mark.parametrize(("setting", "problems"), [(":16:8", 0), (":0:0", 1)])
    def test_a_variable_of_the_users_is_kept(self, monkeypatch, setting, problems):
        """And listed if it is not one of the two that are reproducible."""
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", setting)
        assert len(prepare_determinism("cuda")) == problems
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == setting

    def test_it_is_not_touched_for_another_device(self):
        """Nothing global is changed that does not help."""
        prepare_determinism("cpu")
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_it_is_an_option_of_the_command_line(monkeypatch):
    """Prepared before a device is used."""
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


def test_seed_everything_sets_the_flags_for_good(caplog):
    """As in SpeechBrain, and cuDNN's with them."""
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
