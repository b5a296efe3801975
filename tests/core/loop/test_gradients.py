"""Clipping, accumulation, and steps that must not be taken."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from brain_core.loop.gradients import split_vectors


def weight(brain):
    """Return the one weight of a scripted brain."""
    return brain.modules.model.weight.item()


def test_a_max_grad_norm_below_zero_clips_nothing(make_scripted, numbers):
    """Reference row: the gradient was multiplied by a negative number, and training went uphill."""
    brain = make_scripted(max_grad_norm=-1)
    brain.fit(range(1), numbers(100.0))
    assert weight(brain) == -100.0


def test_the_norm_is_taken_over_all_parameter_groups(regression):
    """Reference row: with vectors in a group of their own, no matrix was ever clipped."""
    brain = regression(
        {"model": torch.nn.Linear(4, 2)},
        lambda groups: torch.optim.SGD(groups, lr=1.0),
        run_opts={"remove_vector_weight_decay": True, "max_grad_norm": 1.0, "device": "cpu"},
    )
    brain.init_optimizers()
    before = [p.detach().clone() for p in brain.modules.parameters()]
    for parameter in brain.modules.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    brain.optimizers_step()
    after = list(brain.modules.parameters())
    moved = torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)])
    assert moved.norm().item() == pytest.approx(1.0, rel=1e-5)


def test_vectors_are_split_off_in_the_order_of_the_reference():
    """So that its optimizer states fit."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    module[1].bias.requires_grad_(requires_grad=False)
    vectors, others = split_vectors(module)
    assert [p.shape for p in vectors["params"]] == [(2,), (2,)]
    assert [p.shape for p in others["params"]] == [(2, 3)]
    assert vectors["weight_decay"] == 0.0


def test_a_short_last_window_is_averaged_over_the_batches_it_has(make_scripted, numbers):
    """Three batches at two a window: the mean of the first two, then the third alone."""
    brain = make_scripted(grad_accumulation_factor=2)
    brain.fit(range(1), numbers(2.0, 4.0, 10.0))
    assert weight(brain) == -(3.0 + 10.0)
    assert brain.optimizer_step == 2


def test_the_last_window_is_short_without_a_known_length(make_scripted):
    """A loader that cannot tell its length ends its epoch in the same way."""

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from torch.tensor([2.0, 4.0, 10.0])

    brain = make_scripted(grad_accumulation_factor=2)
    brain.fit(range(1), torch.utils.data.DataLoader(Stream(), batch_size=1))
    assert (weight(brain), brain.optimizer_step) == (-13.0, 2)


def adamw(parameters):
    """Make an optimizer that moves even with zero gradients."""
    return torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_batch_that_is_not_finite_changes_nothing(make_scripted, numbers, bad):
    """Reference row: one NaN destroyed the weights; weight decay and momentum still stepped."""
    states = []
    for values in ((1.0, 2.0, 3.0), (1.0, bad, 2.0, bad, 3.0)):
        brain = make_scripted(opt_class=adamw)
        losses = []
        brain.on_stage_end = lambda stage, loss, epoch, losses=losses: losses.append(loss)
        brain.fit(range(1), numbers(*values))
        states.append((weight(brain), losses, str(brain.optimizer.state_dict())))
    assert states[0] == states[1]


def test_an_infinite_gradient_of_a_finite_loss_changes_nothing(make_scripted, numbers):
    """Reference row: the good gradients became 0, the bad one None, and the optimizer stepped."""

    class Steep(type(make_scripted())):
        def compute_objectives(self, predictions, batch, stage):
            # the square root's slope at 0 is infinite
            return torch.sqrt(predictions * 0) + predictions * 0 if batch.sum() < 0 else predictions

    brain = make_scripted(Steep, opt_class=adamw)
    torch.nn.init.ones_(brain.modules.model.weight)
    brain.fit(range(1), numbers(-1.0))
    assert weight(brain) == 1.0
    assert brain.nonfinite_count == 1
    assert brain.optimizer.state_dict()["state"] == {}


def test_an_infinite_loss_with_finite_gradients_is_left_out_too(make_scripted, numbers):
    """A constant that overflows has no slope."""

    class Overflowing(type(make_scripted())):
        def compute_objectives(self, predictions, batch, stage):
            return predictions + (math.inf if batch.sum() < 0 else 0.0)

    brain = make_scripted(Overflowing)
    brain.fit(range(1), numbers(-1.0, 1.0))
    assert weight(brain) == -1.0


def test_a_window_with_one_bad_batch_is_left_out_as_a_whole(make_scripted, numbers):
    """Its good batches cannot be told from the bad one once their gradients are added up."""
    brain = make_scripted(grad_accumulation_factor=2)
    brain.fit(range(1), numbers(1.0, math.nan, 3.0, 5.0))
    assert weight(brain) == -4.0
    assert brain.nonfinite_count == 1


def test_past_its_patience_training_gives_up_with_advice(make_scripted, numbers):
    """And with the weights that it had."""
    brain = make_scripted(nonfinite_patience=2)
    with pytest.raises(ValueError, match=r"nonfinite_patience is 2(.|\n)*detect_anomaly"):
        brain.fit(range(1), numbers(1.0, math.nan, math.nan, 1.0, math.nan, 1.0))
    assert weight(brain) == -2.0


def test_patience_begins_anew_with_each_epoch(make_scripted, numbers):
    """Three bad batches in three epochs are none too many for a patience of one."""
    brain = make_scripted(nonfinite_patience=1)
    brain.fit(range(3), numbers(1.0, math.nan))
    assert weight(brain) == -3.0


def test_each_step_left_out_is_logged(make_scripted, numbers, caplog):
    """With the batch and what is left of the patience."""
    brain = make_scripted()
    with caplog.at_level(logging.WARNING):
        brain.fit(range(1), numbers(1.0, math.nan))
    assert "A loss of batch 2 is not finite: this step is skipped (1 of 3" in caplog.text


def test_skip_nonfinite_grads_steps_with_the_good_gradients(regression, pairs, caplog):
    """The bad ones are named, and the good ones are clipped by their own norm."""

    class HalfBad(regression):
        def compute_objectives(self, predictions, batch, stage):
            loss = super().compute_objectives(predictions, batch, stage)
            self.modules.model.bias.register_hook(lambda g: g * math.nan)
            return loss

    model = torch.nn.Linear(4, 2)
    weight_before, bias_before = model.weight.detach().clone(), model.bias.detach().clone()
    brain = HalfBad(
        {"model": model},
        lambda p: torch.optim.SGD(p, lr=0.1),
        run_opts={"skip_nonfinite_grads": True, "device": "cpu"},
    )
    with caplog.at_level(logging.WARNING):
        brain.fit(range(1), pairs, train_loader_kwargs={"batch_size": 22})
    assert torch.equal(model.bias, bias_before)
    assert not torch.equal(model.weight, weight_before)
    assert torch.isfinite(model.weight).all()
    assert "model.bias" in caplog.text


def test_an_override_of_check_gradients_may_mend_them(make_scripted, numbers):
    """What it leaves finite is stepped on."""

    class Mending(type(make_scripted())):
        def check_gradients(self):
            for parameter in self.modules.parameters():
                parameter.grad = torch.nan_to_num(parameter.grad, nan=0.5)

    brain = make_scripted(Mending, skip_nonfinite_grads=True)
    brain.fit(range(1), numbers(math.nan))
    assert weight(brain) == -0.5


def test_the_mean_is_over_the_finite_losses(make_scripted, numbers):
    """Reference row: [1, nan, 3] gave 1.667."""
    means = []
    brain = make_scripted(opt_class=lambda p: torch.optim.SGD(p, lr=0.0))
    brain.on_stage_end = lambda stage, loss, epoch: means.append(loss)
    brain.fit(range(1), numbers(1.0, math.nan, 3.0), numbers(1.0, math.nan, 3.0))
    assert means == [2.0, 2.0]


def test_an_override_of_update_average_has_the_mean_in_its_hands(make_scripted, numbers):
    """And the method that it overrides skips losses that are not finite."""
    given = []

    class Averaging(type(make_scripted())):
        def update_average(self, loss, avg_loss):
            given.append(float(loss))
            return super().update_average(loss, avg_loss)

    means = []
    brain = make_scripted(Averaging, opt_class=lambda p: torch.optim.SGD(p, lr=0.0))
    brain.on_stage_end = lambda stage, loss, epoch: means.append(loss)
    brain.fit(range(1), numbers(1.0, math.nan, 3.0), numbers(5.0))
    assert means == [2.0, 5.0]
    assert given[::2] == [1.0, 3.0]


def test_no_sync_is_left_when_an_exception_passes(make_scripted, numbers):
    """Reference row: gradients stayed unshared for good."""
    brain = make_scripted(grad_accumulation_factor=2)
    entered = []

    class Context:
        def __enter__(self):
            entered.append("in")

        def __exit__(self, *exception):
            entered.append("out")

    brain.no_sync = lambda use=True: Context()
    brain.compute_objectives = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        brain.fit(range(1), numbers(1.0))
    assert entered == ["in", "out"]
