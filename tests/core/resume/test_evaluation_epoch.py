"""What an evaluation loads from a checkpoint, and which epoch it reports."""

import logging
import sys
import types
from enum import Enum, auto

import pytest
import torch

from brain_ckpt import Checkpointer
from brain_core import EpochCounter, EpochCounterWithStopper, Stage


class Average:
    """An average of weights, kept by a recipe."""

    def __init__(self):
        self.value = 0

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


@pytest.fixture(params=[EpochCounter, EpochCounterWithStopper])
def trained(request, make_scripted, numbers, tmp_path):
    """Return a Brain whose best epoch was the first of three."""
    base = type(make_scripted())

    class Run(base):
        shown = None

        def on_stage_end(self, stage, stage_loss, epoch=None):
            if stage is Stage.VALID:
                self.hparams.average.value = epoch
                self.checkpointer.save_and_keep_only({"error": epoch}, min_keys=["error"])
            if stage is Stage.TEST:
                self.shown = self.hparams.counter.current
                self.checkpointer.save_checkpoint(meta={"error": 9}, name="tested")

    counter = request.param(*[3, 5, 0, "min"][: 1 if request.param is EpochCounter else 4])
    average, net = Average(), torch.nn.Linear(1, 1)
    checkpointer = Checkpointer(
        tmp_path, {"model": net, "average": average, "counter": counter}, spare=0
    )
    brain = Run(
        {"model": net},
        lambda p: torch.optim.SGD(p, lr=0.1),
        {"counter": counter, "average": average},
        {"device": "cpu"},
        checkpointer,
    )
    brain.fit(counter, numbers(1, 2), numbers(1))
    return brain, numbers(1)


def test_the_counter_shows_the_epoch_whose_model_is_evaluated(trained):
    """Recipes log that epoch as "Epoch loaded"; it is reset after the evaluation."""
    brain, data = trained
    brain.evaluate(data, min_key="error")
    assert brain.shown == 1
    assert brain.hparams.counter.current == 3


def test_a_checkpoint_saved_in_an_evaluation_contains_the_training_epoch(trained):
    """A run that resumes from it does not repeat the epochs after the best one."""
    brain, data = trained
    brain.evaluate(data, min_key="error")
    brain.hparams.counter.current = 0
    brain.checkpointer.recover_if_possible(ckpt_predicate=lambda c: c.path.name == "CKPT+tested")
    assert brain.hparams.counter.current == 3


def test_averaged_weights_are_loaded_with_the_model(trained):
    """An average of weights is loaded from the best epoch, though it is not a module."""
    brain, data = trained
    assert brain.hparams.average.value == 3
    brain.evaluate(data, min_key="error")
    assert brain.hparams.average.value == 1


def test_on_evaluate_start_outside_of_an_evaluation_keeps_the_counter(trained):
    """The counter is not changed, since only `evaluate` resets it."""
    brain, _ = trained
    brain.on_evaluate_start(min_key="error")
    assert brain.hparams.counter.current == 3


@pytest.fixture
def speechbrain_stage(monkeypatch):
    """Return an enumeration like SpeechBrain's Stage."""
    module = types.ModuleType("speechbrain.core")
    monkeypatch.setitem(sys.modules, "speechbrain.core", module)

    class Stage(Enum):
        __module__ = "speechbrain.core"
        TRAIN = auto()
        VALID = auto()

    return Stage


def test_a_stage_equals_speechbrains(speechbrain_stage):
    """A loss function of SpeechBrain can compare a stage with its own Stage."""
    assert Stage.TRAIN == speechbrain_stage.TRAIN
    assert speechbrain_stage.TRAIN == Stage.TRAIN
    assert Stage.TRAIN != speechbrain_stage.VALID
    assert {Stage.TRAIN: 1}[speechbrain_stage.TRAIN] == 1


def test_a_stage_equals_no_other_value():
    """A stage differs from other enumerations, strings and stages."""
    other = Enum("Stage", ["TRAIN"])
    assert Stage.TRAIN != other.TRAIN
    assert Stage.TRAIN != "TRAIN"
    assert Stage.TRAIN != Stage.VALID


def test_a_metric_that_no_checkpoint_has_is_an_error_that_lists_those_there_are(
    regression, pairs, tmp_path
):
    """Instead of testing the weights in memory."""
    checkpointer = Checkpointer(tmp_path)
    brain = regression({"model": torch.nn.Linear(4, 2)}, checkpointer=checkpointer)
    checkpointer.add_recoverable("model", brain.modules.model)
    checkpointer.save_checkpoint(meta={"loss": 1.0, "PER": 2.0})
    with pytest.raises(ValueError, match=r"got 'WER'.* have PER, loss: name"):
        brain.evaluate(pairs, min_key="WER")


def test_an_evaluation_says_whose_weights_it_tests(regression, pairs, tmp_path, caplog):
    """Those in memory, where there is no checkpoint; else which checkpoint's."""
    checkpointer = Checkpointer(tmp_path)
    brain = regression(
        {"model": torch.nn.Linear(4, 2)},
        lambda p: torch.optim.SGD(p, lr=0.1),
        run_opts={"device": "cpu"},
        checkpointer=checkpointer,
    )
    with caplog.at_level(logging.INFO):
        brain.evaluate(pairs)
    assert "the weights in memory are evaluated" in caplog.text
    brain.fit(range(1), pairs, train_loader_kwargs={"batch_size": 11})
    checkpointer.save_checkpoint(meta={"loss": 1.0})
    brain.fit(range(1), pairs, train_loader_kwargs={"batch_size": 11})
    with caplog.at_level(logging.INFO):
        brain.evaluate(pairs, min_key="loss")
    assert ": epoch 0, optimizer step 2 (training is at step 4)." in caplog.text
