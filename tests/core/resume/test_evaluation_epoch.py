"""Which parts of a checkpoint an evaluation takes, and what it shows of the others."""

import sys
import types
from enum import Enum, auto

import pytest
import torch

from brain_ckpt import Checkpointer
from brain_core import EpochCounter, EpochCounterWithStopper, Stage


class Average:
    """An average of weights that a recipe keeps beside its model."""

    def __init__(self):
        self.value = 0

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


@pytest.fixture(params=[EpochCounter, EpochCounterWithStopper])
def trained(request, make_scripted, numbers, tmp_path):
    """Return a brain whose best epoch was the first of three."""
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
    """Recipes log it as "Epoch loaded"; afterwards the training's own epoch is there again."""
    brain, data = trained
    brain.evaluate(data, min_key="error")
    assert brain.shown == 1
    assert brain.hparams.counter.current == 3


def test_a_checkpoint_saved_in_an_evaluation_holds_the_training_s_own_epoch(trained):
    """Who goes on from it does not train the epochs after the best one again."""
    brain, data = trained
    brain.evaluate(data, min_key="error")
    brain.hparams.counter.current = 0
    brain.checkpointer.recover_if_possible(ckpt_predicate=lambda c: c.path.name == "CKPT+tested")
    assert brain.hparams.counter.current == 3


def test_what_belongs_to_the_model_is_loaded_with_it(trained):
    """An average of weights need not be a module to be that of the best epoch."""
    brain, data = trained
    assert brain.hparams.average.value == 3
    brain.evaluate(data, min_key="error")
    assert brain.hparams.average.value == 1


def test_loading_the_best_model_outside_of_an_evaluation_leaves_the_counter(trained):
    """on_evaluate_start may be called by itself; nothing would put the counter back."""
    brain, _ = trained
    brain.on_evaluate_start(min_key="error")
    assert brain.hparams.counter.current == 3


@pytest.fixture
def their_stage(monkeypatch):
    """Return an enumeration that looks as SpeechBrain's does."""
    module = types.ModuleType("speechbrain.core")
    monkeypatch.setitem(sys.modules, "speechbrain.core", module)

    class Stage(Enum):
        __module__ = "speechbrain.core"
        TRAIN = auto()
        VALID = auto()

    return Stage


def test_a_stage_equals_speechbrain_s(their_stage):
    """A loss of SpeechBrain's that is handed a stage compares it with its own."""
    assert Stage.TRAIN == their_stage.TRAIN
    assert their_stage.TRAIN == Stage.TRAIN
    assert Stage.TRAIN != their_stage.VALID
    assert {Stage.TRAIN: 1}[their_stage.TRAIN] == 1


def test_a_stage_equals_nothing_else():
    """Another enumeration with the same names has nothing to do with it."""
    other = Enum("Stage", ["TRAIN"])
    assert Stage.TRAIN != other.TRAIN
    assert Stage.TRAIN != "TRAIN"
    assert Stage.TRAIN != Stage.VALID
