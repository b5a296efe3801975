"""Tests on a GPU; skipped without one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import brain_dist

DEVICE = "cuda:0"  # all ranks share it: gloo carries its tensors
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class _Shuffled(nn.Module):
    """Uses its layers in another order than it makes them, so that DDP rebuilds its buckets."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(40, 1)
        self.layers = nn.ModuleList(nn.Linear(40, 40) for _ in range(6))

    def forward(self, x):
        for number in (5, 2, 4, 0, 3, 1):
            x = self.layers[number](x).tanh()
        return self.last(x)


def _steps(rank, steps, state=None, applies=True):
    torch.manual_seed(0)
    modules = {"m": _Shuffled().to(DEVICE)}
    brain_dist.wrap_modules(modules, device=DEVICE, bucket_cap_mb=0.01)
    order = brain_dist.BucketOrder(modules)
    if state is not None:
        modules["m"].load_state_dict(state["m"])
        order.load_state_dict(state["order"])
        if applies:
            order.apply()
    optimizer = torch.optim.SGD(modules["m"].parameters(), lr=1e-3)
    for step in steps:
        torch.manual_seed(step * 10 + rank)
        optimizer.zero_grad()
        modules["m"](torch.rand(8, 40).to(DEVICE)).square().sum().backward()
        optimizer.step()
    weights = {key: value.clone() for key, value in modules["m"].state_dict().items()}
    return {"m": weights, "order": order.state_dict()}


def _resume(rank):
    full_run, half = _steps(rank, range(6)), _steps(rank, range(3))
    ends = [_steps(rank, range(3, 6), half, applies) for applies in (True, False)]
    return [all(torch.equal(end["m"][k], full_run["m"][k]) for k in full_run["m"]) for end in ends]


def test_a_resumed_run_is_exact_if_the_bucket_order_is_applied(ranks):
    """On the device as on the CPU; without the order the sums differ."""
    assert ranks(_resume, 3, timeout_s=120) == [[True, False]] * 3


def test_a_scaled_step_that_overflows_is_skipped():
    """The scale is reduced."""
    weight = nn.Parameter(torch.ones(2, device=DEVICE))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = brain_dist.make_grad_scaler(DEVICE, enabled=True)
    before = scaler.get_scale()
    scaler.scale((weight * torch.inf).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert weight.tolist() == [1.0, 1.0]
    assert scaler.get_scale() < before


def test_a_weighted_step_does_not_wait_for_the_device():
    """The host does not read a tensor that counts tokens."""
    weighted = brain_dist.WeightedGradients()
    weight = nn.Parameter(torch.ones(2, device=DEVICE))
    tokens = torch.full((), 3.0, device=DEVICE)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        weighted.scale(weight.sum(), tokens).backward()
        weighted.normalize([weight])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert weight.grad.tolist() == [1.0, 1.0]
