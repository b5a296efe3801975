"""Who may stop a run, what it does then, and how the process ends."""

from __future__ import annotations

import code
import logging
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
import torch

from brain_ckpt import Checkpointer
from brain_core import Brain, EpochCounter, EpochCounterWithStopper, TrainingStopped
from brain_dist import get_rank


class Line(Brain):
    """A linear model whose steps take a moment, and do something at one of them."""

    def compute_forward(self, batch, stage):
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        return torch.nn.functional.mse_loss(predictions, batch[1])

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        self.steps_done += 1
        if self.steps_done == self.act_at:
            self.act()


def make(folder, act=lambda: None, act_at=3, epochs=2, **run_opts):
    """Make a run in a folder, or one without a checkpointer, and what trains it."""
    torch.manual_seed(3)
    model = torch.nn.Linear(4, 2)
    counter = EpochCounter(epochs)
    saver = None if folder is None else Checkpointer(folder, {"model": model, "counter": counter})
    brain = Line(
        {"model": model},
        lambda p: torch.optim.SGD(p, lr=0.1),
        run_opts={"device": "cpu", "recover_attributes": False, **run_opts},
        checkpointer=saver,
    )
    brain.steps_done, brain.act, brain.act_at = 0, act, act_at
    generator = torch.Generator().manual_seed(7)
    rows = torch.randn(24, 4, generator=generator), torch.randn(24, 2, generator=generator)
    brain.data = torch.utils.data.TensorDataset(*rows)
    brain.train = lambda: brain.fit(counter, brain.data, train_loader_kwargs={"batch_size": 4})
    return brain


def interrupt():
    """Press Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


def weights(brain):
    """Return all weights."""
    return [p.tolist() for p in brain.modules.parameters()]


@pytest.fixture(autouse=True)
def _sigint():
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, former)


def test_the_first_ctrl_c_saves_and_the_run_goes_on_bit_for_bit(tmp_path, capfd):
    """The screen says so; the code is the shell's for Ctrl-C, so that nothing requeues the run."""
    whole = make(tmp_path / "whole")
    whole.train()
    first = make(tmp_path / "run", interrupt)
    with pytest.raises(TrainingStopped, match="SIGINT") as stopped:
        first.train()
    assert isinstance(stopped.value, SystemExit)
    assert isinstance(stopped.value, KeyboardInterrupt)
    assert stopped.value.code == 130
    assert first.steps_done == 3
    assert "Press Ctrl-C again to exit at once." in capfd.readouterr().err
    second = make(tmp_path / "run")
    second.train()
    assert second.steps_done == 12 - 3
    assert weights(second) == weights(whole)


def test_the_second_ctrl_c_leaves_at_once(tmp_path):
    """As a KeyboardInterrupt, within the step."""
    brain = make(tmp_path, lambda: (interrupt(), interrupt()))
    with pytest.raises(KeyboardInterrupt) as interrupted:
        brain.train()
    assert not isinstance(interrupted.value, TrainingStopped)
    assert not list(tmp_path.glob("CKPT*"))


def test_without_a_checkpointer_ctrl_c_is_what_it_always_is():
    """There is nothing to save to."""
    brain = make(None, interrupt)
    with pytest.raises(KeyboardInterrupt) as interrupted:
        brain.train()
    assert type(interrupted.value) is KeyboardInterrupt


def test_an_ignored_ctrl_c_stays_ignored(tmp_path):
    """As of a run that a shell has started in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        brain = make(tmp_path, interrupt)
        brain.train()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert brain.steps_done == 12


def test_a_program_with_a_handler_of_its_own_keeps_it(tmp_path):
    """It is not ours to replace."""
    seen = []
    signal.signal(signal.SIGINT, lambda *_: seen.append("here"))
    try:
        make(tmp_path, interrupt).train()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert seen == ["here"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_at_a_prompt_does_not_end_the_session(tmp_path, monkeypatch, number):
    """There TrainingStopped is no SystemExit, and `fit` called again goes on."""
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    brain = make(tmp_path, lambda: os.kill(os.getpid(), number))
    with pytest.raises(TrainingStopped) as stopped:
        brain.train()
    assert not isinstance(stopped.value, SystemExit)
    assert isinstance(stopped.value, KeyboardInterrupt) == (number == signal.SIGINT)
    brain.train()
    assert brain.steps_done == 12


def test_a_console_survives_a_stop(tmp_path, monkeypatch, capsys):
    """The standard library's own, which a SystemExit would end."""
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    brain = make(tmp_path, lambda: os.kill(os.getpid(), signal.SIGTERM))
    console = code.InteractiveConsole({"brain": brain})
    console.push("brain.train()")
    console.push("print('still', 'here')")
    printed = capsys.readouterr()
    assert "training stopped: SIGTERM" in printed.err
    assert "still here" in printed.out


def test_what_was_stopped_survives_pickling():
    """Ranks and pools send exceptions about."""
    again = pickle.loads(pickle.dumps(TrainingStopped("SIGTERM", 130)))
    assert (again.reason, again.code, str(again)) == ("SIGTERM", 130, "training stopped: SIGTERM")


def test_a_time_limit_saves_and_leaves(tmp_path):
    """Like a signal that the run sends itself, with the code that requeues it."""
    brain = make(tmp_path, lambda: time.sleep(0.3), stop_after_minutes=0.2 / 60)
    with pytest.raises(TrainingStopped, match="time limit") as stopped:
        brain.train()
    assert stopped.value.code == 75
    assert brain.steps_done == 3
    assert list(tmp_path.glob("CKPT*"))


def test_a_time_limit_needs_somewhere_to_save_to():
    """Else it would throw the training away."""
    with pytest.raises(ValueError, match="stop_after_minutes needs a checkpointer"):
        make(None, stop_after_minutes=1).train()


def test_a_script_that_catches_the_stop_can_evaluate_and_train_on(tmp_path, caplog):
    """The request was obeyed; one line tells of it, and nothing alarming."""
    brain = make(tmp_path, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with caplog.at_level(logging.INFO):
        with pytest.raises(TrainingStopped):
            brain.train()
        assert brain.evaluate(brain.data) > 0
        brain.train()
    assert brain.steps_done == 12
    stops = [r for r in caplog.records if r.message.startswith("Stopping")]
    assert [r.message for r in stops] == ["Stopping: SIGTERM. The run is saved."]
    assert not [r for r in caplog.records if r.levelno > logging.INFO]


def test_an_evaluation_is_left_at_the_next_batch(tmp_path):
    """With the same code: there is nothing to save, and the next start evaluates again."""
    brain = make(tmp_path)
    brain.train()
    evaluated = []
    forward = brain.compute_forward

    def stopping(batch, stage):
        evaluated.append(len(batch[0]))
        os.kill(os.getpid(), signal.SIGTERM)
        return forward(batch, stage)

    brain.compute_forward = stopping
    with pytest.raises(TrainingStopped) as stopped:
        brain.evaluate(brain.data, test_loader_kwargs={"batch_size": 4})
    assert (len(evaluated), stopped.value.code) == (1, 75)


def test_a_signal_too_late_for_fit_is_obeyed_by_the_evaluation(tmp_path):
    """In the last epoch's end there is no border left."""
    brain = make(tmp_path)
    brain.on_stage_end = lambda stage, loss, epoch: (
        os.kill(os.getpid(), signal.SIGUSR1) if epoch == 2 else None
    )
    brain.train()
    with pytest.raises(TrainingStopped, match="SIGUSR1"):
        brain.evaluate(brain.data)


def test_a_recipes_own_stop_in_the_last_epoch_leaves_the_evaluation_alone(tmp_path):
    """It asked for an end of the training."""
    brain = make(tmp_path)
    brain.on_stage_end = lambda stage, loss, epoch: brain.stop() if epoch == 2 else None
    brain.train()
    assert brain.evaluate(brain.data) > 0


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {folder!r})
import test_stop as t
brain = t.make({save!r}, lambda: os.kill(os.getpid(), signal.{name}))
signal.signal(signal.SIGINT, signal.default_int_handler)
brain.train()
"""


@pytest.mark.parametrize(("name", "ends_with"), [("SIGTERM", 75), ("SIGINT", 130)])
def test_a_script_ends_with_the_code_and_without_a_traceback(tmp_path, name, ends_with):
    """What a shell, or a wrapper, sees."""
    folder = os.path.dirname(__file__)
    script = SCRIPT.format(folder=folder, save=str(tmp_path / "save"), name=name)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == ends_with, done.stderr
    assert "Traceback" not in done.stderr


def stop_by_clock(rank, folder):
    """Train on two ranks of which the clock of one has run out; return how each ended."""
    brain = make(folder, lambda: time.sleep(0.5), stop_after_minutes=0.1 / 60 if rank else 60)
    with pytest.raises(TrainingStopped) as stopped:
        brain.train()
    return str(stopped.value), stopped.value.code, brain.steps_done


def test_the_time_limit_of_one_rank_stops_all_at_the_same_batch(ranks, tmp_path):
    """Clocks differ; the decision does not."""
    a, b = ranks(stop_by_clock, 2, tmp_path / "save")
    assert a == b
    assert a[:2] == ("training stopped: time limit (on rank 1 of 2)", 75)


def stop_early(rank, folder):
    """Train on ranks whose metrics differ; return the epochs that each has done."""
    counter = EpochCounterWithStopper(9, 2, 0, "min")
    epochs = []
    for epoch in counter:
        epochs.append(epoch)
        counter.update_metric(1.0 if get_rank() == 0 else -epoch)
    return epochs


def test_early_stopping_is_the_same_decision_on_all_ranks(ranks, tmp_path):
    """A metric of each rank's own would leave some of them in an epoch without the others."""
    assert ranks(stop_early, 2, tmp_path) == [[1, 2, 3]] * 2
