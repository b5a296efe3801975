"""One pass over a loader by itself, without a Brain."""

from __future__ import annotations

import pytest
import torch

from brain_core.loop.epoch_pass import EpochPass, evaluating
from brain_core.loop.evaluation import evaluate_batches
from brain_core.loop.running_mean import LossMean


class Counter:
    """Counts the batches of a pass."""

    step = 7


def test_a_pass_gives_every_batch_and_their_mean():
    """The mean object is the caller's."""
    mean = LossMean()
    with EpochPass([1.0, 2.0, 6.0], mean=mean) as epoch_pass:
        seen = []
        for batch in epoch_pass:
            seen.append(batch)
            epoch_pass.add_loss(batch)
            epoch_pass.batch_done()
    assert (seen, mean.mean()) == ([1.0, 2.0, 6.0], 3.0)


def test_a_recipes_own_average_takes_the_place_of_the_mean():
    """It is given each loss and its last value."""
    mean = LossMean()
    with EpochPass([], mean=mean, update=lambda loss, average: 0.5 * (loss + average)) as one:
        for loss in (4.0, 2.0):
            one.add_loss(loss)
    assert mean.mean() == mean.mean_over_ranks() == 2.0


def test_the_loaders_iterator_is_dropped_when_an_exception_passes():
    """Else its workers would live as long as the traceback."""
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
    """One step each."""

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
    """Also where an exception passes."""
    modules, counter, steps = torch.nn.ModuleDict(), Counter(), []

    def evaluate(batch):
        steps.append(counter.step)
        return batch / (batch != 5.0)

    options = {"modules": modules, "counter": counter, "shard": False, "after_batch": None}
    assert evaluate_batches([1.0, 3.0], evaluate, **options) == 2.0
    with pytest.raises(ZeroDivisionError):
        evaluate_batches([1.0, 5.0], evaluate, **options)
    assert (steps, counter.step) == ([1, 2, 1, 2], 7)


def test_modules_are_evaluated_in_evaluation_mode_and_back_after_an_error():
    """Only those that were in training mode return to it."""
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
