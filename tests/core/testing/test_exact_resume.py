"""`brain_core.testing`: which runs it accepts, and which causes it names for the others."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
import torch

from brain_ckpt import Checkpointer
from brain_core import Brain, EpochCounter
from brain_core.testing import assert_resumes_exactly

README = Path(__file__).parents[3] / "packages" / "brain-core" / "README.md"


class Small(Brain):
    """A Brain with one linear layer and dropout."""

    def compute_forward(self, batch, stage):
        return self.modules.model(batch)

    def compute_objectives(self, predictions, batch, stage):
        return predictions.square().mean()


def making(cls=Small, **options):
    """Return a function that makes a Brain of this class in a folder."""

    def make_brain(folder):
        return cls(
            {"model": torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())},
            lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
            run_opts={"device": "cpu", **options},
            checkpointer=Checkpointer(folder),
        )

    return make_brain


make_small = making()
SIX = {"train_set": torch.arange(12.0).reshape(6, 2)}


def failure(*args, **kwargs):
    """Return the failure of the AssertionError that is raised."""
    with pytest.raises(AssertionError) as raised:
        assert_resumes_exactly(*args, **kwargs)
    return str(raised.value)


def test_the_example_of_the_readme_passes(tmp_path, monkeypatch):
    """The README's example of a user's test runs as it is and passes."""
    text = README.read_text(encoding="utf-8")
    (code,) = re.findall(
        r"```python\n(.{0,200}from brain_core.testing import.*?)```", text, re.DOTALL
    )
    path = tmp_path / "test_of_the_user.py"
    path.write_text(code, encoding="utf-8")
    names = {"__name__": "test_of_the_user"}
    exec(compile(code, path, "exec"), names)
    passed = []
    names["assert_resumes_exactly"] = lambda *args, **kwargs: passed.append(
        assert_resumes_exactly(*args, **kwargs)
    )
    names["test_it_resumes_exactly"]()
    assert len(passed) == 1


def test_training_that_resumes_exactly_passes_in_a_few_seconds():
    """Two epochs with shuffling, accumulation and validation pass within 5 s of CPU time."""
    started = time.process_time()
    assert_resumes_exactly(
        making(ckpt_interval_steps=1, grad_accumulation_factor=2),
        lambda _: {
            **SIX,
            "epoch_counter": EpochCounter(2),
            "valid_set": torch.ones(2, 2),
            "train_loader_kwargs": {"shuffle": True},
        },
    )
    assert time.process_time() - started < 5


def test_it_works_after_other_threads_have_computed():
    """A forked process does not wait for threads that exist only in its parent."""
    former = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (torch.randn(600, 600) @ torch.randn(600, 600)).sum()
        assert_resumes_exactly(make_small, SIX, kills=[3])
    finally:
        torch.set_num_threads(former)


def test_a_function_that_cannot_be_spawned_is_refused():
    """With "spawn", functions that cannot be pickled raise an error with advice."""
    with pytest.raises(ValueError, match="Define them at the top level of a module"):
        assert_resumes_exactly(lambda folder: None, SIX, start_method="spawn")


class Tempered(Small):
    """A Brain whose loss depends on a number that changes with each batch."""

    def on_fit_start(self):
        self.schedule = self.new_schedule()
        super().on_fit_start()

    def new_schedule(self):
        return {"temperature": 1.0}

    def compute_objectives(self, predictions, batch, stage):
        schedule = self.schedule if isinstance(self.schedule, dict) else vars(self.schedule)
        schedule["temperature"] *= 0.5
        loss = super().compute_objectives(predictions, batch, stage)
        return loss * schedule["temperature"]


def test_a_plain_attribute_that_training_changes_resumes_exactly():
    """A number in an attribute of the Brain is restored without code in the recipe."""
    assert_resumes_exactly(making(Tempered), SIX, kills=[3])


def test_an_attribute_that_no_checkpoint_holds_is_named():
    """The message contains the attribute and its two values."""

    class Schedule:
        def __init__(self):
            self.temperature = 1.0

    class Opaque(Tempered):
        def new_schedule(self):
            return Schedule()

    text = failure(making(Opaque), SIX, kills=[3])
    assert "killed after epoch 1, batch 3 of training and restarted must equal" in text
    assert "First difference: epoch 1, batch 3 of training: the loss, " in text
    assert "self.schedule changes in training and is in no checkpoint" in text
    assert "temperature: 0.25 undisturbed, 1.0 now" in text


def test_an_unsaved_generator_is_named():
    """A torch.Generator that is not in the checkpoint is named as the cause."""

    class Noisy(Small):
        def on_fit_start(self):
            self.noise = torch.Generator().manual_seed(1)
            super().on_fit_start()

        def compute_forward(self, batch, stage):
            return super().compute_forward(batch + torch.rand(1, generator=self.noise), stage)

    assert "self.noise is in no checkpoint" in failure(making(Noisy), SIX, kills=[3])


def test_state_outside_the_brain_is_distinguished_from_a_nondeterministic_kernel():
    """If the Brain's state and the batch are equal, the message suggests a global or a closure."""
    calls = []

    class Hidden(Small):
        def compute_objectives(self, predictions, batch, stage):
            calls.append(None)
            return super().compute_objectives(predictions, batch, stage) * len(calls)

    assert "Look for a global, a closure" in failure(making(Hidden), SIX, kills=[3])


def test_a_nondeterministic_kernel_is_found_before_any_kill():
    """Two undisturbed runs that differ with equal weights, random states and batch are reported."""

    class Racing(Small):
        def compute_objectives(self, predictions, batch, stage):
            chance = int.from_bytes(os.urandom(2), "little") * 1e-9
            return super().compute_objectives(predictions, batch, stage) + chance

    text = failure(making(Racing), SIX)
    assert "Two undisturbed runs must be equal" in text
    assert "a nondeterministic kernel" in text
    assert '"deterministic": True' in text


def test_unseeded_data_are_distinguished_from_a_nondeterministic_kernel():
    """If only the batches of two undisturbed runs differ, the data are named as the cause."""

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            return torch.ones(2) * int.from_bytes(os.urandom(2), "little")

    assert "the data depend on a source that is not seeded" in failure(
        make_small, {"train_set": Rows()}
    )


def test_unseeded_initial_weights_are_distinguished_from_a_nondeterministic_kernel():
    """If the initial weights of two undisturbed runs differ, make_brain is named as the cause."""

    def make_brain(folder):
        brain = make_small(folder)
        with torch.no_grad():
            brain.modules.model[0].weight.fill_(int.from_bytes(os.urandom(2), "little"))
        return brain

    assert "make_brain makes different weights each time" in failure(make_brain, SIX)


def test_augmentation_that_does_not_depend_on_its_position_alone_is_named():
    """A dataset with its own generator is named, because that generator restarts."""

    class Rows(torch.utils.data.Dataset):
        def __init__(self):
            self.own = torch.Generator().manual_seed(1)

        def __len__(self):
            return 6

        def __getitem__(self, index):
            return torch.ones(2) * index + torch.rand(2, generator=self.own)

    text = failure(make_small, lambda _: {"train_set": Rows()}, kills=[3])
    assert "does not depend on the position in the epoch alone" in text


def test_the_output_of_a_run_that_cannot_resume_is_shown():
    """The message contains the traceback of the restarted run."""

    class Stuck(Small):
        def on_fit_start(self):
            super().on_fit_start()
            assert self.step == 0, "cannot resume"

    text = failure(making(Stuck), SIX, kills=[3])
    assert "AssertionError: cannot resume" in text


def test_a_run_that_hangs_is_killed_and_its_traceback_is_shown():
    """The run is killed after the timeout, and the message contains its current function."""

    class Hanging(Small):
        def on_fit_start(self):
            time.sleep(60)

    text = failure(making(Hanging), SIX, timeout_s=1.0)
    assert "must end within 1.0 s, but hangs" in text
    assert "in on_fit_start" in text


@pytest.mark.parametrize(
    ("kills", "text"), [(6, "must be 1 to 5"), ([7], "must name batches from 1 to 6, got 7")]
)
def test_impossible_kills_are_refused(kills, text):
    """The error states the number of batches."""
    with pytest.raises(ValueError, match=text):
        assert_resumes_exactly(make_small, SIX, kills=kills)


def test_a_brain_without_a_checkpointer_is_refused():
    """A Brain without a checkpointer raises an error, as it cannot resume."""
    assert "must return a Brain with a checkpointer" in failure(lambda _: Small(), SIX)
