"""Scripts that call fit several times: undisturbed, and killed anywhere and started again."""

from __future__ import annotations

import logging
import os
import threading

import pytest
import torch

from brain_ckpt import Checkpointer
from brain_core import Brain, EpochCounter, Stage

# The number of the batch, over both fits: each of the two has some.
KILLED_AT = (3, 11, 17, 21, 31) if os.environ.get("BRAIN_CHAOS") else (11, 21)


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the loop may catch it."""


class Run(Brain):
    """Eight batches an epoch, with dropout; notes each batch, and dies where it is told to."""

    kill_at = None

    def compute_forward(self, batch, stage):
        return self.modules.head(
            torch.nn.functional.dropout(self.modules.body(batch), 0.3, stage is Stage.TRAIN)
        )

    def compute_objectives(self, predictions, batch, stage):
        return predictions.square().mean()

    def fit_batch(self, batch):
        loss = super().fit_batch(batch)
        self.steps.append(loss.item())
        if len(self.steps) == self.kill_at:
            raise Killed
        return loss


def generator():
    """Return a generator for data that are the same each time."""
    return torch.Generator().manual_seed(5)


DATA = torch.randn(16, 3, generator=generator())
LOADING = {"batch_size": 2, "shuffle": True}


class Script:
    """What is the same at each start of a script."""

    def __init__(self, folder, kill_at=None, saved=(), **options):
        torch.manual_seed(1)
        modules = {"body": torch.nn.Linear(3, 4), "head": torch.nn.Linear(4, 2)}
        self.counters = [EpochCounter(2), EpochCounter(2)]
        recoverables = {f"counter{i}": self.counters[i] for i in saved}
        self.brain = Run(
            modules,
            lambda p: torch.optim.AdamW([q for q in p if q.requires_grad], lr=0.05),
            run_opts={
                "device": "cpu",
                "ckpt_interval_steps": 4,
                "recover_attributes": False,  # the count of batches is the test's own
                **options,
            },
            checkpointer=Checkpointer(folder, recoverables),
        )
        self.brain.steps, self.brain.kill_at = [], kill_at

    def fit(self, epochs, **kwargs):
        """Train on the data."""
        self.brain.fit(epochs, DATA, train_loader_kwargs=LOADING, **kwargs)

    def weights(self):
        """Return all weights."""
        return torch.cat([p.detach().flatten() for p in self.brain.modules.parameters()])


def two_ranges(script):
    """The same numbers twice."""
    script.fit(range(1, 3))
    script.fit(range(1, 3))


def two_counters(script):
    """A counter for each."""
    script.fit(script.counters[0])
    script.fit(script.counters[1])


def one_counter_with_a_raised_limit(script):
    """Two more epochs."""
    script.fit(script.counters[0])
    script.counters[0].limit = 4
    script.fit(script.counters[0])


def repeated_epochs(script):
    """Numbers that do not rise."""
    script.fit([3, 1, 1])
    script.fit([2])


def with_an_evaluation(script):
    """The evaluation loads the newest checkpoint, whatever it is."""
    script.fit(range(1, 3), valid_set=DATA)
    script.brain.evaluate(DATA)
    script.fit(range(3, 5), valid_set=DATA)


def freeze_then_unfreeze(script):
    """The second fit's optimizer has other parameters."""
    script.brain.modules.body.requires_grad_(requires_grad=False)
    script.fit(range(1, 3))
    script.brain.modules.body.requires_grad_(requires_grad=True)
    script.fit(range(1, 3))


def draws_in_between(script):
    """The data of the second fit come from the generators as the first has left them."""
    script.fit(range(1, 3))
    noise = torch.randn(16, 3)
    script.brain.fit(range(1, 3), DATA + noise, train_loader_kwargs=LOADING)


SCRIPTS = {
    "two ranges": (two_ranges, (), 32),
    "two counters that are saved": (two_counters, (0, 1), 32),
    "two counters that are not saved": (two_counters, (), 32),
    "two counters, one saved": (two_counters, (1,), 32),
    "one counter, limit raised": (one_counter_with_a_raised_limit, (0,), 32),
    "repeated epochs": (repeated_epochs, (), 32),
    "an evaluation in between": (with_an_evaluation, (), 32),
    "freeze, then unfreeze": (freeze_then_unfreeze, (), 32),
    "draws in between": (draws_in_between, (), 32),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_fit_trains_and_a_kill_changes_nothing(tmp_path, name):
    """Killed at any place of both fits: the same losses and the same weights in the end."""
    play, saved, steps = SCRIPTS[name]
    whole = Script(tmp_path / "whole", saved=saved)
    play(whole)
    assert len(whole.brain.steps) == steps
    for kill_at in KILLED_AT:
        script = Script(tmp_path / f"{kill_at}", kill_at, saved)
        with pytest.raises(Killed):
            play(script)
        script.brain.checkpointer.close()
        again = Script(tmp_path / f"{kill_at}", None, saved)
        play(again)
        done = len(again.brain.steps)
        assert kill_at - 5 <= steps - done <= kill_at, (kill_at, done)
        assert again.brain.steps == whole.brain.steps[-done:], kill_at
        assert torch.equal(again.weights(), whole.weights()), kill_at


def test_a_fit_after_an_evaluation_starts_from_what_was_trained(tmp_path):
    """Though no checkpoint holds it, and the evaluation has loaded an older one."""

    def play(folder, *, evaluates):
        script = Script(tmp_path / folder, ckpt_interval_steps=0)
        script.fit(range(1, 2))
        script.brain.checkpointer.save_checkpoint()
        script.fit(range(2, 3))
        if evaluates:
            state = torch.get_rng_state()
            script.brain.evaluate(DATA)
            torch.set_rng_state(state)
        script.fit(range(3, 5))
        return script.weights()

    assert torch.equal(play("one", evaluates=True), play("other", evaluates=False))


@pytest.mark.parametrize(("same", "states"), [(True, 4), (False, 0)])
def test_the_optimizer_goes_on_unless_the_script_gives_another(tmp_path, same, states):
    """Its moments, and its rate."""
    script = Script(tmp_path)
    script.fit(range(1, 3))
    if not same:
        script.brain.opt_class = lambda p: torch.optim.AdamW(p, lr=0.001)
    seen = []
    script.brain.on_stage_start = lambda *_: seen.append(len(script.brain.optimizer.state))
    script.fit(range(1, 2))
    assert seen == [states]


def test_a_fit_that_is_done_is_skipped_with_a_line(tmp_path, caplog):
    """It names the call and the one that the checkpoint belongs to."""
    script = Script(tmp_path, 21)
    with pytest.raises(Killed):
        two_ranges(script)
    script.brain.checkpointer.close()
    with caplog.at_level(logging.INFO):
        two_ranges(Script(tmp_path))
    said = [r.message for r in caplog.records if r.name.startswith("brain_core")]
    assert any("Skipping fit 1 of this script, which is complete" in line for line in said)
    assert sum(line.startswith("Resuming from") for line in said) == 1


def test_a_script_that_is_finished_says_that_there_is_nothing_to_do(tmp_path, caplog):
    """And how to train longer, or anew."""
    script = Script(tmp_path)
    script.fit(range(1, 3))
    script.brain.checkpointer.close()
    again = Script(tmp_path)
    with caplog.at_level(logging.INFO):
        again.fit(range(1, 3))
    assert again.brain.steps == []
    assert "Nothing to train: all epochs up to 2 are done. To train longer" in caplog.text


def test_a_finished_script_with_a_higher_limit_trains_on(tmp_path):
    """Five more epochs."""
    Script(tmp_path).fit(range(1, 3))
    again = Script(tmp_path)
    again.fit(range(1, 8))
    assert len(again.brain.steps) == 5 * 8


def test_a_fit_that_an_exception_ended_resumes_when_it_is_called_again(tmp_path):
    """As in a notebook, whose cell is run again."""
    whole = Script(tmp_path / "whole")
    whole.fit(range(1, 4))
    script = Script(tmp_path / "notebook", 13)
    with pytest.raises(Killed):
        script.fit(range(1, 4))
    script.fit(range(1, 4))
    assert torch.equal(script.weights(), whole.weights())


def test_two_brains_with_a_directory_each_train_on_their_own(tmp_path):
    """Each counts its own calls."""
    one, other = Script(tmp_path / "one"), Script(tmp_path / "other")
    for script in (one, other):
        script.fit(range(1, 3))
    two_ranges(one)
    assert (len(one.brain.steps), len(other.brain.steps)) == (48, 16)


@pytest.mark.parametrize("fits", [20, pytest.param(200, marks=pytest.mark.long)])
def test_many_fits_leave_nothing_behind(tmp_path, fits):
    """Threads, files and what a checkpoint holds stay as they were."""
    script = Script(tmp_path)
    data = DATA[:4]

    def fit():
        script.brain.fit(range(1), data, train_loader_kwargs={"batch_size": 2})

    fit()
    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    handlers = len(logging.root.handlers)
    for _ in range(fits - 1):
        fit()
    assert threading.active_count() <= before[0]
    assert len(os.listdir("/proc/self/fd")) <= before[1]
    assert len(logging.root.handlers) == handlers
    assert len(script.brain.steps) == 2 * fits
    assert len(script.brain._run.rank_state.state_dict()["rng_after_fits"]) == min(fits, 64)


def play_on_rank(_, folder, name):
    """Play a script undisturbed and killed at five places; return what came of each."""
    play, saved, _ = SCRIPTS[name]
    whole = Script(folder / "whole", saved=saved)
    play(whole)
    whole.brain.checkpointer.close()
    rows = [(None, len(whole.brain.steps), True)]
    for kill_at in (2, 6, 9, 11, 15):
        script = Script(folder / f"{kill_at}", kill_at, saved)
        with pytest.raises(Killed):
            play(script)
        script.brain.checkpointer.close()
        again = Script(folder / f"{kill_at}", None, saved)
        play(again)
        again.brain.checkpointer.close()
        done = len(again.brain.steps)
        is_equal = again.brain.steps == whole.brain.steps[-done:]
        rows.append((kill_at, done, is_equal and torch.equal(again.weights(), whole.weights())))
    return rows


@pytest.mark.long
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_same_holds_on_two_ranks(ranks, tmp_path, name):
    """Each rank takes half of the batches; all die at the same batch."""
    for rows in ranks(play_on_rank, 2, tmp_path, name, timeout_s=300.0):
        print(f"\n{name}, 2 ranks: {rows}")  # noqa: T201
        assert rows[0] == (None, 16, True)
        assert all(is_equal for _, _, is_equal in rows)
