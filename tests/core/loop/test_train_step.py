"""One optimizer step, without a Brain."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from brain_core.loop.train_step import TrainStep, explain_loss, report_nonfinite

NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)


@pytest.fixture
def weight():
    """Return a parameter with the value 1."""
    return torch.nn.Parameter(torch.ones(1))


@pytest.fixture
def optimizer(weight):
    """Return SGD with learning rate 1 for that parameter."""
    return torch.optim.SGD([weight], lr=1.0)


def add(step, weight, slope, accumulation, *, is_padding=False):
    """Run the backward pass of a batch whose loss has this slope in the weight."""
    step.batches += 1
    loss = step.scale((weight * slope).sum(), accumulation, is_padding=is_padding)
    step.backward(loss, NO_SCALER, lambda _: step.note_nonfinite_loss(), always_check=False)


def finish(step, optimizer, accumulation, max_norm=-1.0):
    """Average the gradients and step, as `Brain.optimizers_step` does."""
    step.average([optimizer], NO_SCALER, accumulation, weighted=False)
    return step.step([optimizer], NO_SCALER, max_norm)


@pytest.mark.parametrize(
    ("slopes", "moved"), [([1.0, 2.0, 3.0], 2.0), ([1.0, 2.0], 1.5), ([4.0], 4)]
)
def test_a_window_steps_by_the_mean_of_its_batches(weight, optimizer, slopes, moved):
    """A short window is divided by its own number of batches."""
    step = TrainStep()
    for slope in slopes:
        add(step, weight, slope, accumulation=3)
    assert finish(step, optimizer, accumulation=3) is None
    assert weight.item() == pytest.approx(1.0 - moved)


def test_a_step_begins_a_new_window(weight, optimizer):
    """After a step, the counts are zero and the gradients are None."""
    step = TrainStep()
    add(step, weight, 1.0, accumulation=1)
    finish(step, optimizer, accumulation=1)
    assert (step.batches, step.padding_batches, weight.grad) == (0, 0, None)


def test_a_padding_batch_adds_nothing_to_the_gradient(weight, optimizer):
    """The loss of a padding batch keeps its graph and has zero weight, even if it is NaN."""
    step = TrainStep()
    add(step, weight, math.nan, accumulation=1, is_padding=True)
    assert step.scale(weight.sum() * math.nan, 1, is_padding=True).item() == 0.0
    assert weight.grad is not None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_skips_the_step(weight, optimizer, bad):
    """A loss is counted in its backward pass, so the step does not count it again."""
    step = TrainStep()
    add(step, weight, 1.0, accumulation=2)
    add(step, weight, bad, accumulation=2)
    assert finish(step, optimizer, accumulation=2) is None
    assert weight.item() == 1.0
    add(step, weight, 1.0, accumulation=1)
    assert finish(step, optimizer, accumulation=1) is None
    assert weight.item() == 0.0


def test_a_gradient_that_is_not_finite_skips_the_step_and_is_reported(weight, optimizer):
    """A nonfinite gradient of a finite loss skips the step and is reported."""
    step = TrainStep()
    add(step, weight, 1.0, accumulation=1)
    weight.grad.fill_(math.inf)
    assert finish(step, optimizer, accumulation=1) == "A gradient"
    assert weight.item() == 1.0


def test_gradients_are_clipped_by_their_norm(weight, optimizer):
    """A gradient of 8 is clipped to the maximum norm of 0.5."""
    step = TrainStep()
    add(step, weight, 8.0, accumulation=1)
    finish(step, optimizer, accumulation=1, max_norm=0.5)
    assert weight.item() == pytest.approx(0.5)


def test_weighted_batches_give_the_mean_over_their_samples(weight, optimizer):
    """With three samples of slope 1 and one of slope 5, the step is by their mean."""
    step = TrainStep()
    for slope, samples in ((1.0, 3), (5.0, 1)):
        step.batches += 1
        loss = step.scale_by_weight((weight * slope).sum(), samples, is_padding=False)
        step.backward(loss, NO_SCALER, lambda _: None, always_check=False)
    step.average([optimizer], NO_SCALER, 2, weighted=True)
    step.step([optimizer], NO_SCALER, -1.0)
    assert weight.item() == pytest.approx(1.0 - (3 * 1.0 + 5.0) / 4)


def test_exceeding_the_patience_raises_an_error(caplog):
    """Skipped steps within the patience are logged as warnings."""
    with caplog.at_level(logging.WARNING):
        report_nonfinite("A loss", step=4, count=1, patience=1)
    assert "A loss of batch 4 is not finite: this step is skipped (1 of 1" in caplog.text
    with pytest.raises(ValueError, match="nonfinite_patience is 1"):
        report_nonfinite("A loss", step=5, count=2, patience=1)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (0.5, "got 0.5"),
        (torch.ones(2, requires_grad=True), r"shape \(2,\)"),
        (torch.ones(1), "without a gradient"),
    ],
)
def test_a_loss_that_cannot_be_trained_on_is_explained(loss, message):
    """The error describes the loss and has torch's error as its cause."""
    cause = RuntimeError("torch's")
    with pytest.raises(ValueError, match=message) as raised:
        explain_loss(loss, cause)
    assert raised.value.__cause__ is cause


def test_a_valid_loss_is_not_blamed(weight):
    """A valid loss raises no error, whatever error backward raised."""
    explain_loss(weight.sum(), RuntimeError("another"))


def test_an_overflow_of_one_optimizer_skips_that_one():
    """The others step, and the scale falls once."""
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizers = [torch.optim.SGD([weight], lr=1.0, momentum=0.9) for weight in weights]
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    step = TrainStep()
    step.batches = 1
    loss = weights[0].sum() * math.inf + weights[1].sum() * 0.5
    step.backward(loss, scaler, lambda _: None, always_check=False)
    step.average(optimizers, scaler, 1, weighted=False)
    assert step.step(optimizers, scaler, -1.0) is None
    assert not step.was_taken
    assert [weight.item() for weight in weights] == [1.0, 0.5]
    assert optimizers[0].state_dict()["state"] == {}
    assert scaler.get_scale() == 2.0
