"""Stop requests: where they come from, what is saved, and how the process ends."""

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


class Linear(Brain):
    """A linear model that calls a function at one of its steps."""

    def compute_forward(self, batch, stage):
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        return torch.nn.functional.mse_loss(predictions, batch[1])

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        self.steps_done += 1
        if self.steps_done == self.act_at:
            self.act()


def make(folder, act=lambda: None, act_at=3, epochs=2, **run_opts):
    """Return a run in this folder, without a checkpointer if it is None."""
    torch.manual_seed(3)
    model = torch.nn.Linear(4, 2)
    counter = EpochCounter(epochs)
    saver = None if folder is None else Checkpointer(folder, {"model": model, "counter": counter})
    brain = Linear(
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
    """Send SIGINT, as Ctrl-C does."""
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


def test_the_first_ctrl_c_saves_and_the_run_resumes_bit_for_bit(tmp_path, capfd):
    """The run stops with a message and exit code 130, so that it is not requeued."""
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


def test_the_second_ctrl_c_stops_at_once(tmp_path):
    """The second Ctrl-C raises KeyboardInterrupt within the step."""
    brain = make(tmp_path, lambda: (interrupt(), interrupt()))
    with pytest.raises(KeyboardInterrupt) as interrupted:
        brain.train()
    assert not isinstance(interrupted.value, TrainingStopped)
    assert not list(tmp_path.glob("CKPT*"))


def test_without_a_checkpointer_ctrl_c_raises_keyboard_interrupt():
    """Without a checkpointer, Ctrl-C keeps its usual effect."""
    brain = make(None, interrupt)
    with pytest.raises(KeyboardInterrupt) as interrupted:
        brain.train()
    assert type(interrupted.value) is KeyboardInterrupt


def test_an_ignored_ctrl_c_stays_ignored(tmp_path):
    """A run that ignores SIGINT, as in a shell's background, continues."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        brain = make(tmp_path, interrupt)
        brain.train()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert brain.steps_done == 12


def test_a_handler_of_the_program_is_kept(tmp_path):
    """A SIGINT handler of the program is called instead of the Brain's."""
    seen = []
    signal.signal(signal.SIGINT, lambda *_: seen.append("here"))
    try:
        make(tmp_path, interrupt).train()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert seen == ["here"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_at_a_prompt_does_not_end_the_session(tmp_path, monkeypatch, number):
    """At a prompt, TrainingStopped is not a SystemExit, and calling `fit` again resumes."""
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    brain = make(tmp_path, lambda: os.kill(os.getpid(), number))
    with pytest.raises(TrainingStopped) as stopped:
        brain.train()
    assert not isinstance(stopped.value, SystemExit)
    assert isinstance(stopped.value, KeyboardInterrupt) == (number == signal.SIGINT)
    brain.train()
    assert brain.steps_done == 12


def test_a_stop_does_not_end_an_interactive_console(tmp_path, monkeypatch, capsys):
    """code.InteractiveConsole, which a SystemExit ends, continues after a stop."""
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    brain = make(tmp_path, lambda: os.kill(os.getpid(), signal.SIGTERM))
    console = code.InteractiveConsole({"brain": brain})
    console.push("brain.train()")
    console.push("print('still', 'here')")
    printed = capsys.readouterr()
    assert "training stopped: SIGTERM" in printed.err
    assert "still here" in printed.out


def test_training_stopped_survives_pickling():
    """A pickled TrainingStopped keeps its reason and its exit code."""
    again = pickle.loads(pickle.dumps(TrainingStopped("SIGTERM", 130)))
    assert (again.reason, again.code, str(again)) == ("SIGTERM", 130, "training stopped: SIGTERM")


def test_a_time_limit_saves_and_stops(tmp_path):
    """The run is saved and stops with code 75, which requeues it."""
    brain = make(tmp_path, lambda: time.sleep(0.3), stop_after_minutes=0.2 / 60)
    with pytest.raises(TrainingStopped, match="time limit") as stopped:
        brain.train()
    assert stopped.value.code == 75
    assert brain.steps_done == 3
    assert list(tmp_path.glob("CKPT*"))


def test_a_time_limit_needs_a_checkpointer():
    """A time limit without a checkpointer is an error, as the training would be lost."""
    with pytest.raises(ValueError, match="stop_after_minutes needs a checkpointer"):
        make(None, stop_after_minutes=1).train()


def test_a_script_can_catch_the_stop_and_continue(tmp_path, caplog):
    """After the stop, evaluate and fit work, and the log contains one line and no warning."""
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


def test_an_evaluation_stops_at_the_next_batch(tmp_path):
    """An evaluation stops with code 75 after the batch in which the signal arrives."""
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


def test_a_signal_after_the_last_step_boundary_stops_the_evaluation(tmp_path):
    """A signal at the end of the last epoch stops the evaluation that follows."""
    brain = make(tmp_path)
    brain.on_stage_end = lambda stage, loss, epoch: (
        os.kill(os.getpid(), signal.SIGUSR1) if epoch == 2 else None
    )
    brain.train()
    with pytest.raises(TrainingStopped, match="SIGUSR1"):
        brain.evaluate(brain.data)


def test_a_signal_after_the_last_step_boundary_stops_the_next_fit_of_another_brain(tmp_path):
    """It is meant for the process; the second fit saves after its first batch, and resumes."""
    first, second = make(tmp_path / "first"), make(tmp_path / "second")
    first.on_stage_end = lambda stage, loss, epoch: (
        os.kill(os.getpid(), signal.SIGTERM) if epoch == 2 else None
    )
    first.train()
    with pytest.raises(TrainingStopped, match="SIGTERM"):
        second.train()
    assert second.steps_done == 1
    second.train()
    first.evaluate(first.data)
    assert second.steps_done == 12


def test_a_signal_after_the_last_step_boundary_of_a_fit_stops_the_fit_around_it(tmp_path):
    """The outer fit saves after the batch in whose hook the inner one ran."""
    inner = make(tmp_path / "inner")
    inner.on_stage_end = lambda stage, loss, epoch: (
        os.kill(os.getpid(), signal.SIGTERM) if epoch == 2 else None
    )
    outer = make(tmp_path / "outer", inner.train)
    with pytest.raises(TrainingStopped, match="SIGTERM"):
        outer.train()
    assert (inner.steps_done, outer.steps_done) == (12, 3)


def test_training_goes_on_after_the_second_ctrl_c_if_the_script_does(tmp_path):
    """As in a notebook: the interrupt was acted on, and the next fit is not stopped by it."""
    brain = make(tmp_path, lambda: (interrupt(), interrupt()))
    with pytest.raises(KeyboardInterrupt):
        brain.train()
    brain.train()
    assert brain.steps_done == 3 + 6  # the second epoch


def test_brain_stop_in_the_last_epoch_does_not_stop_the_evaluation(tmp_path):
    """`Brain.stop` at the end of the last epoch applies to the training only."""
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
def test_a_script_ends_with_the_exit_code_and_without_a_traceback(tmp_path, name, ends_with):
    """The process exits with 75 after SIGTERM and with 130 after SIGINT."""
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
    """Train on two ranks, where rank 1 has the shorter time limit; return how each stopped."""
    brain = make(folder, lambda: time.sleep(0.5), stop_after_minutes=0.1 / 60 if rank else 60)
    with pytest.raises(TrainingStopped) as stopped:
        brain.train()
    return str(stopped.value), stopped.value.code, brain.steps_done


def test_the_time_limit_of_one_rank_stops_all_at_the_same_batch(ranks, tmp_path):
    """Both ranks stop after the same batch, with the reason of the rank whose limit is reached."""
    a, b = ranks(stop_by_clock, 2, tmp_path / "save")
    assert a == b
    assert a[:2] == ("training stopped: time limit (on rank 1 of 2)", 75)


def stop_early(rank, folder):
    """Return the epochs that a rank trains if the metrics of the ranks differ."""
    counter = EpochCounterWithStopper(9, 2, 0, "min")
    epochs = []
    for epoch in counter:
        epochs.append(epoch)
        counter.update_metric(1.0 if get_rank() == 0 else -epoch)
    return epochs


def test_early_stopping_stops_all_ranks_after_the_same_epoch(ranks, tmp_path):
    """Early stopping uses one metric on all ranks, even if their metrics differ."""
    assert ranks(stop_early, 2, tmp_path) == [[1, 2, 3]] * 2
