"""`brain_core.testing`: what it passes, what it finds, and what it says of it."""

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
    """One layer with dropout."""

    def compute_forward(self, batch, stage):
        return self.modules.model(batch)

    def compute_objectives(self, predictions, batch, stage):
        return predictions.square().mean()


def making(cls=Small, **options):
    """Return a function that makes such a Brain in a folder."""

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


def message(*args, **kwargs):
    """Return what the assertion says."""
    with pytest.raises(AssertionError) as raised:
        assert_resumes_exactly(*args, **kwargs)
    return str(raised.value)


def test_the_example_of_the_readme_passes(tmp_path, monkeypatch):
    """What it shows, as a test of the user's."""
    text = README.read_text(encoding="utf-8")
    (code,) = re.findall(
        r"```python\n(.{0,200}from brain_core.testing import.*?)```", text, re.DOTALL
    )
    path = tmp_path / "test_of_the_user.py"
    path.write_text(code, encoding="utf-8")
    names = {"__name__": "test_of_the_user"}
    exec(compile(code, path, "exec"), names)
    names["test_it_resumes_exactly"]()


def test_a_training_that_goes_on_exactly_passes_in_a_few_seconds():
    """Ordinary use: epochs counted, data shuffled, an interval of the Brain's own."""
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


def test_it_works_where_other_threads_have_computed_before():
    """A fork has none of the parent's threads, and must not wait for them."""
    former = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (torch.randn(600, 600) @ torch.randn(600, 600)).sum()
        assert_resumes_exactly(make_small, SIX, kills=[3])
    finally:
        torch.set_num_threads(former)


def test_it_can_start_processes_afresh():
    """With spawn, as where CUDA is in use; what cannot be sent to them is refused with advice."""
    with pytest.raises(ValueError, match="Define them at the top level of a module"):
        assert_resumes_exactly(lambda folder: None, SIX, start_method="spawn")


class Tempered(Small):
    """Its loss depends on a number that each batch changes."""

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
    """No recipe has to save its own numbers."""
    assert_resumes_exactly(making(Tempered), SIX, kills=[3])


def test_an_attribute_that_no_checkpoint_holds_is_named():
    """With its two values."""

    class Schedule:
        def __init__(self):
            self.temperature = 1.0

    class Opaque(Tempered):
        def new_schedule(self):
            return Schedule()

    said = message(making(Opaque), SIX, kills=[3])
    assert "killed after epoch 1, batch 3 of training" in said
    assert "First difference: epoch 1, batch 3 of training: the loss, " in said
    assert "self.schedule changes in training and is in no checkpoint" in said
    assert "temperature: 0.25 undisturbed, 1.0 now" in said


def test_a_generator_of_ones_own_is_named():
    """A torch.Generator has a state that no checkpoint holds."""

    class Noisy(Small):
        def on_fit_start(self):
            self.noise = torch.Generator().manual_seed(1)
            super().on_fit_start()

        def compute_forward(self, batch, stage):
            return super().compute_forward(batch + torch.rand(1, generator=self.noise), stage)

    assert "self.noise is in no checkpoint" in message(making(Noisy), SIX, kills=[3])


def test_state_that_is_nowhere_to_be_seen_is_told_from_a_kernel():
    """Two undisturbed runs agree, all that the Brain holds is equal, and yet."""
    calls = []

    class Hidden(Small):
        def compute_objectives(self, predictions, batch, stage):
            calls.append(None)
            return super().compute_objectives(predictions, batch, stage) * len(calls)

    assert "a global, a closure" in message(making(Hidden), SIX, kills=[3])


def test_a_kernel_that_is_not_deterministic_is_found_before_anything_is_killed():
    """The same weights, random states and batch give another result in two undisturbed runs."""

    class Racing(Small):
        def compute_objectives(self, predictions, batch, stage):
            chance = int.from_bytes(os.urandom(2), "little") * 1e-9
            return super().compute_objectives(predictions, batch, stage) + chance

    said = message(making(Racing), SIX)
    assert "two that nobody disturbed differ" in said
    assert "a nondeterministic kernel" in said
    assert '"deterministic": True' in said


def test_data_drawn_from_what_is_not_seeded_are_told_from_a_kernel():
    """The batches differ, and nothing before them."""

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            return torch.ones(2) * int.from_bytes(os.urandom(2), "little")

    assert "the data are drawn from something that is not seeded" in message(
        make_small, {"train_set": Rows()}
    )


def test_other_weights_at_every_start_are_told_from_a_kernel():
    """make_brain has to seed what it draws from."""

    def make_brain(folder):
        brain = make_small(folder)
        with torch.no_grad():
            brain.modules.model[0].weight.fill_(int.from_bytes(os.urandom(2), "little"))
        return brain

    assert "make_brain makes other weights each time" in message(make_brain, SIX)


def test_augmentation_that_is_not_keyed_by_its_place_is_named():
    """A dataset's own generator begins anew in the run that goes on."""

    class Rows(torch.utils.data.Dataset):
        def __init__(self):
            self.own = torch.Generator().manual_seed(1)

        def __len__(self):
            return 6

        def __getitem__(self, index):
            return torch.ones(2) * index + torch.rand(2, generator=self.own)

    said = message(make_small, lambda _: {"train_set": Rows()}, kills=[3])
    assert "randomness is not keyed by the place in the epoch" in said


def test_a_run_that_cannot_go_on_is_shown_with_what_it_printed():
    """Its traceback is part of the message."""

    class Stuck(Small):
        def on_fit_start(self):
            super().on_fit_start()
            assert self.step == 0, "cannot go on"

    said = message(making(Stuck), SIX, kills=[3])
    assert "AssertionError: cannot go on" in said


def test_a_run_that_hangs_is_ended_and_says_where_it_was():
    """Not after hours."""

    class Hanging(Small):
        def on_fit_start(self):
            time.sleep(60)

    said = message(making(Hanging), SIX, timeout_s=1.0)
    assert "must end within 1.0 s, and hangs" in said
    assert "in on_fit_start" in said


@pytest.mark.parametrize(
    ("kills", "text"), [(6, "must be 1 to 5"), ([7], "must name batches from 1 to 6, got 7")]
)
def test_kills_that_cannot_be_are_refused(kills, text):
    """With how many batches there are."""
    with pytest.raises(ValueError, match=text):
        assert_resumes_exactly(make_small, SIX, kills=kills)


def test_a_brain_without_a_checkpointer_is_refused():
    """There is nothing to go on from."""
    assert "must return a Brain with a checkpointer" in message(lambda _: Small(), SIX)
