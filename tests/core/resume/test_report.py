"""What a run that goes on says of it, and what it takes into its checkpoints unasked."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import pytest
import torch

import brain_core.brain
from brain_ckpt import Checkpointer
from brain_core import EpochCounter, EpochCounterWithStopper, FileTrainLogger
from brain_core.resume.environment import record_environment
from brain_core.resume.report import Resumption, samples_in


@pytest.fixture
def run(regression, pairs, tmp_path, caplog):
    """Return a function that trains, stops after so many batches, and returns the Brain."""

    def train(stop_after=None, change=lambda brain: None, cls=regression, ranks_folder="save"):
        torch.manual_seed(3)
        brain = cls(
            {"model": torch.nn.Linear(4, 2)},
            lambda parameters: torch.optim.Adam(parameters, lr=0.1),
            run_opts={"device": "cpu", "ckpt_interval_steps": 2},
            checkpointer=Checkpointer(tmp_path / ranks_folder),
        )
        change(brain)
        if stop_after is not None:
            fit_batch = brain.fit_batch
            brain.fit_batch = lambda batch: 1 / 0 if brain.step > stop_after else fit_batch(batch)
        loading = {"batch_size": 4, "shuffle": True}
        caplog.clear()
        with caplog.at_level(logging.INFO), contextlib.suppress(ZeroDivisionError):
            brain.fit(range(1, 3), pairs, pairs, None, loading)
        brain.checkpointer.close()
        return brain

    return train


@pytest.fixture
def said(caplog):
    """Return the one line that a resumed run says, with its level."""

    def line():
        (found,) = [r for r in caplog.records if r.message.startswith("Resuming from")]
        return found.levelname, found.message

    return line


def test_a_resumed_run_says_in_one_line_what_it_did(run, said):
    """Checkpoint, epoch, step, samples done, what was restored."""
    run(stop_after=5)
    run()
    level, line = said()
    assert level == "INFO"
    assert line.startswith("Resuming from CKPT+")
    assert line.endswith(
        ": epoch 1, batch 4, optimizer step 4 (16 samples done). Restored: "
        "brain, brain_setup, dataloader-TRAIN, model, optimizer, rank_state. The run continues bit "
        "for bit."
    )


@pytest.mark.parametrize(
    ("name", "former"),
    [
        ("torch threads", 97),
        ("torch", "2.6.0"),
        ("numpy", "1.26.0"),
        ("python", "3.9.1"),
        ("device", "cuda (NVIDIA H100)"),
        ("CPU capability", "AVX999"),
        ("world size", 3),
        ("deterministic algorithms", True),
    ],
)
def test_what_may_change_the_last_bits_is_noticed_and_said(run, said, monkeypatch, name, former):
    """As a warning, with what it was and what it is."""
    present = record_environment()
    with monkeypatch.context() as patch:
        patch.setattr(
            brain_core.brain, "record_environment", lambda device: {**present, name: former}
        )
        run(stop_after=5)
    run()
    level, line = said()
    assert level == "WARNING"
    assert f"Same data order, but not the same bits: {name} {former} -> {present[name]}." in line


def test_the_number_of_threads_is_read_from_torch(run, said):
    """Nothing is pretended here: 2, then 1."""
    former = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        run(stop_after=5)
        torch.set_num_threads(1)
        run()
    finally:
        torch.set_num_threads(former)
    assert "Same data order, but not the same bits: torch threads 2 -> 1." in said()[1]


def test_a_damaged_newest_checkpoint_is_named_by_its_file(run, said, tmp_path):
    """The run goes on from the one before."""
    first = run(stop_after=5)
    first.checkpointer.save_checkpoint()
    first.checkpointer.close()
    newest = max((tmp_path / "save").glob("CKPT*"), key=lambda path: path.stat().st_mtime_ns)
    damaged = newest / "optimizer.ckpt"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    run()
    level, line = said()
    assert level == "WARNING"
    assert "batch 4, " in line
    assert f"Skipped as damaged: {newest} is damaged: optimizer.ckpt" in line


def test_a_checkpoint_without_a_random_state_is_exact_in_data_only(run, said):
    """As one of SpeechBrain's."""

    def forget(brain):
        add = brain.checkpointer.add_recoverable
        brain.checkpointer.add_recoverable = lambda name, *args, **kwargs: (
            name == "rank_state" or add(name, *args, **kwargs)
        )

    run(stop_after=5, change=forget)
    run()
    line = said()[1]
    assert "Not in the checkpoint, unchanged: rank_state." in line
    assert "Same data order, but not the same bits: no generator state was saved" in line


def test_what_was_added_after_a_checkpoint_is_said_to_be_left_as_it_is(run, said):
    """It was not in the recipe when the checkpoint was saved."""

    def add(brain):
        brain.scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.ones(1)], 1.0), 1)

    run(stop_after=5)
    run(change=add)
    assert "Not in the checkpoint, unchanged: scheduler." in said()[1]


def test_a_save_inside_a_window_is_warned_of_and_said(run, said, caplog):
    """Its gradients are lost, and the weights will differ."""

    def save_inside(brain):
        brain.grad_accumulation_factor = 3
        brain.ckpt_interval_steps = 0
        hook = brain.on_fit_batch_end

        def on_fit_batch_end(*args):
            hook(*args)
            if brain.step == 5:
                brain.checkpointer.save_checkpoint(end_of_epoch=False)

        brain.on_fit_batch_end = on_fit_batch_end

    run(stop_after=5, change=save_inside)
    assert "it does not hold the gradients of the window's first 2 batches" in caplog.text
    run(change=lambda brain: setattr(brain, "grad_accumulation_factor", 3))
    assert "not the same bits: the gradients of 2 batches of a window were not saved." in said()[1]


def test_a_checkpoint_of_an_epochs_end_says_so():
    """There is no batch of it to name, and it may not know the epoch."""
    line = str(
        Resumption(
            checkpoint="CKPT+x",
            epoch=3,
            batches=None,
            samples=None,
            optimizer_step=9,
            restored=["model"],
        )
    )
    assert line == (
        "Resuming from CKPT+x: epoch 3, complete, optimizer step 9. Restored: model. "
        "The run continues bit for bit."
    )


@pytest.mark.parametrize(
    ("loader", "samples"),
    [
        (torch.utils.data.DataLoader(range(10), batch_size=4), 10),
        (torch.utils.data.DataLoader(range(100), batch_size=4), 12),
        (torch.utils.data.DataLoader(range(10), batch_size=None), None),
        ([1, 2, 3], None),
    ],
)
def test_samples_are_counted_where_the_loader_tells(loader, samples):
    """Three batches; a short last one counts what it has."""
    assert samples_in(loader, 3) == samples


# ------------------------------------------------------------- what is saved unasked


def test_a_recipe_that_adds_nothing_saves_everything(run, tmp_path):
    """Model, optimizer, scheduler, logger, epoch counter: all that training changes."""

    def forget(brain):
        brain.scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.ones(1)], 1.0), 1)
        brain.hparams.train_logger = FileTrainLogger(tmp_path / "log.txt")
        brain.hparams.averages = torch.nn.Linear(1, 1).requires_grad_(requires_grad=False)

    brain = run(change=forget)
    assert set(brain.checkpointer.recoverables) == {
        *("brain", "brain_setup", "rank_state", "dataloader-TRAIN"),
        *("model", "optimizer", "scheduler", "train_logger"),
    }


def test_what_a_recipe_adds_itself_is_not_saved_twice(regression, pairs, tmp_path):
    """A ModuleList over the modules, under another name, covers them."""
    net = torch.nn.Linear(4, 2)
    counter = EpochCounter(1)
    checkpointer = Checkpointer(tmp_path, {"all": torch.nn.ModuleList([net]), "epochs": counter})
    brain = regression(
        {"model": net}, lambda p: torch.optim.SGD(p, lr=0.1), checkpointer=checkpointer
    )
    brain.fit(counter, pairs)
    assert set(checkpointer.recoverables) == {
        *("all", "brain", "brain_setup", "dataloader-TRAIN", "epochs", "optimizer", "rank_state"),
    }


def test_a_frozen_module_is_not_saved_unasked(regression, pairs, tmp_path):
    """A large pretrained encoder does not go into each checkpoint."""
    brain = regression(
        {
            "model": torch.nn.Linear(4, 2),
            "encoder": torch.nn.Linear(9, 9).requires_grad_(requires_grad=False),
        },
        lambda p: torch.optim.SGD([q for q in p if q.requires_grad], lr=0.1),
        checkpointer=Checkpointer(tmp_path),
    )
    brain.fit(range(1), pairs)
    assert "encoder" not in brain.checkpointer.recoverables


def test_early_stopping_goes_on_without_the_recipe_saving_its_counter(regression, pairs, tmp_path):
    """A plateau ends the run in the epoch in which it would have ended undisturbed."""

    def train(limit):
        counter = EpochCounterWithStopper(limit, 3, 0, "min")

        class Flat(regression):
            def on_stage_end(self, stage, stage_loss, epoch=None):
                counter.update_metric(1.0)
                self.checkpointer.save_checkpoint()

        checkpointer = Checkpointer(tmp_path)
        Flat({"model": torch.nn.Linear(4, 2)}, torch.optim.SGD, checkpointer=checkpointer).fit(
            counter, pairs
        )
        checkpointer.close()
        return counter.current

    assert train(2) == 2
    assert train(50) == 4


def test_an_optimizer_that_a_recipe_makes_and_forgets_is_saved(regression, pairs, tmp_path):
    """Those of optimizers_dict, by their names."""

    class Two(regression):
        def init_optimizers(self):
            make = torch.optim.SGD
            self.optimizers_dict = {
                "weights": make([self.modules.model.weight], lr=0.1, momentum=0.9),
                "biases": make([self.modules.model.bias], lr=0.1, momentum=0.9),
            }

    brain = Two({"model": torch.nn.Linear(4, 2)}, checkpointer=Checkpointer(tmp_path))
    brain.fit(range(1), pairs)
    assert {"weights", "biases"} <= set(brain.checkpointer.recoverables)


def test_a_state_that_brain_does_not_know_how_to_keep_is_named(run, caplog):
    """Whether training changes it, only the recipe knows."""

    def forget(brain):
        brain.noise = torch.Generator()
        brain.hparams.teacher = torch.nn.Linear(1, 1)

    run(change=forget)
    assert (
        "No checkpoint holds the state of self.noise (Generator), hparams.teacher (Linear)."
        in caplog.text
    )


def test_evaluation_loads_modules_that_the_recipe_did_not_add(run, pairs, regression):
    """A script that only tests finds what training saved unasked."""
    trained = run()
    trained.checkpointer.save_checkpoint()
    trained.checkpointer.close()
    tester = regression(
        {"model": torch.nn.Linear(4, 2)},
        checkpointer=Checkpointer(trained.checkpointer.checkpoints_dir),
    )
    tester.evaluate(pairs)
    assert torch.equal(tester.modules.model.weight, trained.modules.model.weight)


def test_a_counter_that_an_older_checkpoint_lacks_does_not_begin_again(regression, pairs, tmp_path):
    """The epochs that are behind the checkpoint are left out, as for plain numbers."""

    class Saving(regression):
        def on_stage_end(self, stage, stage_loss, epoch=None):
            self.checkpointer.save_checkpoint()

    def train(epochs):
        checkpointer = Checkpointer(tmp_path)
        brain = Saving({"model": torch.nn.Linear(4, 2)}, torch.optim.SGD, checkpointer=checkpointer)
        done = []
        brain.on_stage_start = lambda stage, epoch: done.append(epoch)
        brain.fit(epochs, pairs)
        checkpointer.close()
        return done

    assert train(range(1, 3)) == [1, 2]
    assert train(EpochCounter(3)) == [3]


def test_intervals_are_read_from_the_brain_when_training_begins(run):
    """A recipe may assign them, as it may assign max_grad_norm."""
    brain = run(stop_after=5, change=lambda brain: setattr(brain, "ckpt_interval_steps", 3))
    found = brain.checkpointer.find_checkpoint()
    assert "step: 3\n" in Path(found.paramfiles["brain"]).read_text()
    assert os.path.exists(found.path)
