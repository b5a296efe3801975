"""Resuming exactly on three ranks or more."""

import random

import pytest
import torch
from torch import nn

import brain_dist


class _Crooked(nn.Module):
    """Uses its layers in another order than it makes them, so that DDP regroups them."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(40, 1)
        self.layers = nn.ModuleList(nn.Linear(40, 40) for _ in range(6))
        self.norm = nn.BatchNorm1d(40)

    def forward(self, x):
        for layer in reversed(self.layers):
            x = layer(x)
        return self.last(nn.functional.dropout(self.norm(x), 0.1))


def _steps(rank, steps, state=None, rehearse=False):
    torch.manual_seed(0)
    modules = {"m": _Crooked()}
    brain_dist.wrap_modules(modules, device="cpu", bucket_cap_mb=0.01)
    model = brain_dist.unwrap_module(modules["m"])

    def one(step):
        torch.manual_seed(step * 10 + rank)
        modules["m"](torch.rand(8, 40)).square().sum().backward()

    if rehearse:
        brain_dist.rehearse(lambda: one(99), modules)
    if state is not None:
        model.load_state_dict(state)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in steps:
        optimizer.zero_grad()
        one(step)
        optimizer.step()
    return {key: value.clone() for key, value in model.state_dict().items()}


def _resume(rank):
    whole = _steps(rank, range(8))
    half = _steps(rank, range(4))
    resumed = _steps(rank, range(4, 8), half)
    rehearsed = _steps(rank, range(4, 8), half, rehearse=True)

    def same(state):
        return all(torch.equal(state[key], whole[key]) for key in whole)

    return same(resumed), same(rehearsed)


def test_a_resumed_run_is_exact_once_it_has_rehearsed(ranks):
    """Without it, the first step sums in another order (pytorch issues 35137 and 44798)."""
    assert ranks(_resume, 3) == [(False, True)] * 3


def _traces(rank):
    torch.manual_seed(0)
    random.seed(0)
    modules = {"m": _Crooked()}
    brain_dist.wrap_modules(modules, device="cpu")
    for parameter in modules["m"].parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {key: value.clone() for key, value in modules["m"].state_dict().items()}
    expected = random.Random(0).random(), torch.get_rng_state()
    calls = []

    def step():
        calls.append(random.random() + torch.rand(1).item())
        modules["m"](torch.rand(8, 40)).sum().backward()

    brain_dist.rehearse(step, modules)
    after = modules["m"].state_dict()
    return (
        len(calls),
        random.random() == expected[0] and torch.equal(torch.get_rng_state(), expected[1]),
        all(torch.equal(before[key], after[key]) for key in before),
        all((p.grad == 1).all().item() for p in modules["m"].parameters()),
    )


def test_a_rehearsal_leaves_no_trace(ranks):
    """Neither in gradients, nor in running statistics, nor in random numbers."""
    assert ranks(_traces, 3) == [(1, True, True, True)] * 3


def test_nothing_is_rehearsed_where_nothing_is_gained(ranks):
    """On two ranks a sum has one order; alone there is none."""
    assert ranks(_traces, 2) == [(0, True, True, True)] * 2
    brain_dist.rehearse(lambda: pytest.fail("called"), nn.Linear(1, 1))
