"""One pass over a loader, without a Brain."""

from __future__ import annotations

import pytest
import torch

from brain_core.loop.epoch_pass import EpochPass, evaluating
from brain_core.loop.evaluation import evaluate_batches
from brain_core.loop.running_mean import LossMean


class Counter:
    """Counts the batches of a pass."""

    step = 7


def test_a_pass_yields_every_batch_and_computes_the_mean():
    """A pass yields all batches and adds their losses to the given mean."""
    mean = LossMean()
    with EpochPass([1.0, 2.0, 6.0], mean=mean) as epoch_pass:
        seen = []
        for batch in epoch_pass:
            seen.append(batch)
            epoch_pass.add_loss(batch)
            epoch_pass.batch_done()
    assert (seen, mean.mean()) == ([1.0, 2.0, 6.0], 3.0)


def test_a_recipes_own_average_replaces_the_mean():
    """The recipe's function gets each loss and its own last result."""
    mean = LossMean()
    with EpochPass([], mean=mean, update=lambda loss, average: 0.5 * (loss + average)) as one:
        for loss in (4.0, 2.0):
            one.add_loss(loss)
    assert mean.mean() == mean.mean_over_ranks() == 2.0


def test_the_loaders_iterator_is_dropped_after_an_exception():
    """The iterator is closed at once, so that the loader's workers end."""
    closed = []

    def batches():
        try:
            yield from range(3)
        finally:
            closed.append(True)

    def train():
        with EpochPass(batches(), mean=LossMean()) as epoch_pass:
            for _ in epoch_pass:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert closed == [True]


def test_a_profiler_counts_the_batches():
    """The profiler steps once for each batch."""

    class Profiler:
        steps = 0

        def step(self):
            self.steps += 1

    profiler = Profiler()
    with EpochPass(range(5), mean=LossMean(), profiler=profiler) as epoch_pass:
        for _ in epoch_pass:
            epoch_pass.batch_done()
    assert profiler.steps == 5


def test_an_evaluation_counts_from_one_and_restores_the_count():
    """The count of batches is restored after an evaluation, also after an exception."""
    modules, counter, steps = torch.nn.ModuleDict(), Counter(), []

    def evaluate(batch):
        steps.append(counter.step)
        return batch / (batch != 5.0)

    options = {"modules": modules, "counter": counter, "shard": False, "after_batch": None}
    assert evaluate_batches([1.0, 3.0], evaluate, **options) == 2.0
    with pytest.raises(ZeroDivisionError):
        evaluate_batches([1.0, 5.0], evaluate, **options)
    assert (steps, counter.step) == ([1, 2, 1, 2], 7)


def test_modules_are_evaluated_in_evaluation_mode_and_restored_after_an_error():
    """After an exception, only the modules that were in training mode return to it."""
    frozen = torch.nn.Dropout().eval()
    modules = torch.nn.ModuleDict({"model": torch.nn.Dropout(), "frozen": frozen})
    seen = []

    def evaluate():
        with evaluating(modules):
            seen.append(modules["model"].training)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluate()
    assert (seen, modules["model"].training) == ([False], True)
    assert not frozen.training
