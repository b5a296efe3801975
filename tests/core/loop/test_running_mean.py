"""The mean loss of a pass, and nonfinite losses."""

from __future__ import annotations

import math

import pytest
import torch

from brain_core.loop.running_mean import LossMean, nan_if_nonfinite


def test_a_mean_accepts_numbers_and_tensors_and_skips_nonfinite_losses():
    """The mean is computed in double precision from numbers and tensors of any precision."""
    mean = LossMean()
    for loss in (1.0, torch.tensor(2.0, dtype=torch.bfloat16), math.nan, torch.tensor([math.inf])):
        mean.add(loss)
    assert (mean.mean(), mean.count, LossMean().mean()) == (1.5, 2, 0.0)


def test_losses_on_a_device_are_read_only_with_the_mean():
    """Losses are added up on the device and read once, when the mean is."""
    mean = LossMean(total=10.0, count=2)
    mean._add_on_device(torch.tensor(2.0))
    mean._add_on_device(torch.tensor(math.nan))
    assert mean._count == 2
    assert (mean.total, mean.count, mean.mean()) == (12.0, 3, 4.0)


def test_the_recent_mean_of_losses_on_a_device_is_that_of_the_call_before():
    """The first is read at once; what is read in between is not counted twice."""
    mean = LossMean()
    recent = []
    for loss in (2.0, 4.0, 9.0, math.nan, 1.0):
        mean._add_on_device(torch.tensor(loss))
        recent.append(mean.recent_mean())
        if loss == 9.0:
            assert mean.mean() == 5.0
    assert recent == [2.0, 2.0, 3.0, 5.0, 5.0]
    assert mean.mean() == 4.0


def test_the_recent_mean_of_losses_on_the_cpu_is_the_mean():
    """As is one that a recipe assigns."""
    mean = LossMean()
    assert mean.recent_mean() == 0.0
    mean.add(torch.tensor(2.0))
    assert mean.recent_mean() == 2.0
    mean.assign(7.0)
    assert mean.recent_mean() == 7.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_nonfinite_loss_has_nonfinite_gradients(value):
    """The gradients are nonfinite, so that the all-reduce shows it to every rank."""
    weight = torch.tensor(2.0, requires_grad=True)
    nan_if_nonfinite(weight * 3.0 + value).backward()
    assert not torch.isfinite(weight.grad)


def test_a_finite_loss_is_returned_unchanged():
    """A finite loss is returned as the same tensor."""
    loss = torch.tensor(2.0, requires_grad=True)
    assert nan_if_nonfinite(loss) is loss
