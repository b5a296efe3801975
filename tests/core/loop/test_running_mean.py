"""The mean loss of a pass, and losses that are not finite."""

from __future__ import annotations

import math

import pytest
import torch

from brain_core.loop.running_mean import LossMean, nan_if_nonfinite


def test_a_mean_takes_numbers_and_tensors_and_leaves_out_what_is_not_finite():
    """In double precision, whatever the loss's own."""
    mean = LossMean()
    for loss in (1.0, torch.tensor(2.0, dtype=torch.bfloat16), math.nan, torch.tensor([math.inf])):
        mean.add(loss)
    assert (mean.mean(), mean.count, LossMean().mean()) == (1.5, 2, 0.0)


def test_a_mean_of_losses_on_a_device_is_read_only_when_asked_for():
    """The device's losses are added up there; meta tensors would fail if they were read."""
    mean = LossMean(total=10.0, count=2)
    mean._add_on_device(torch.tensor(2.0))
    mean._add_on_device(torch.tensor(math.nan))
    assert mean._count == 2
    assert (mean.total, mean.count, mean.mean()) == (12.0, 3, 4.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_spoilt_loss_has_gradients_that_are_not_finite(value):
    """So that the all-reduce tells every rank."""
    weight = torch.tensor(2.0, requires_grad=True)
    nan_if_nonfinite(weight * 3.0 + value).backward()
    assert not torch.isfinite(weight.grad)


def test_a_finite_loss_is_not_touched():
    """Not even by a multiplication with one."""
    loss = torch.tensor(2.0, requires_grad=True)
    assert nan_if_nonfinite(loss) is loss
