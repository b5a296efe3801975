"""A warm-up step makes resuming exact on three ranks or more."""

import random

import pytest
import torch
from torch import nn

import brain_dist


class _Shuffled(nn.Module):
    """Uses its layers in another order than it makes them, so that DDP rebuilds its buckets."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(40, 1)
        self.layers = nn.ModuleList(nn.Linear(40, 40) for _ in range(6))
        self.norm = nn.BatchNorm1d(40)

    def forward(self, x):
        for layer in reversed(self.layers):
            x = layer(x)
        return self.last(nn.functional.dropout(self.norm(x), 0.1))


def _steps(rank, steps, state=None, warm_up=False):
    torch.manual_seed(0)
    modules = {"m": _Shuffled()}
    brain_dist.wrap_modules(modules, device="cpu", bucket_cap_mb=0.01)
    model = brain_dist.unwrap_module(modules["m"])

    def forward_backward(step):
        torch.manual_seed(step * 10 + rank)
        modules["m"](torch.rand(8, 40)).square().sum().backward()

    if warm_up:
        brain_dist.warm_up_step(lambda: forward_backward(99), modules)
    if state is not None:
        model.load_state_dict(state)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in steps:
        optimizer.zero_grad()
        forward_backward(step)
        optimizer.step()
    return {key: value.clone() for key, value in model.state_dict().items()}


def _resume(rank):
    full_run = _steps(rank, range(8))
    half = _steps(rank, range(4))
    resumed = _steps(rank, range(4, 8), half)
    warmed_up = _steps(rank, range(4, 8), half, warm_up=True)

    def same(state):
        return all(torch.equal(state[key], full_run[key]) for key in full_run)

    return same(resumed), same(warmed_up)


def test_a_resumed_run_is_exact_after_a_warm_up_step(ranks):
    """Without one, the first step sums in another order (pytorch issues 35137 and 44798)."""
    assert ranks(_resume, 3) == [(False, True)] * 3


def _state_after_warm_up(rank):
    torch.manual_seed(0)
    random.seed(0)
    modules = {"m": _Shuffled()}
    brain_dist.wrap_modules(modules, device="cpu")
    for parameter in modules["m"].parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {key: value.clone() for key, value in modules["m"].state_dict().items()}
    expected = random.Random(0).random(), torch.get_rng_state()
    calls = []

    def step():
        calls.append(random.random() + torch.rand(1).item())
        modules["m"](torch.rand(8, 40)).sum().backward()

    brain_dist.warm_up_step(step, modules)
    after = modules["m"].state_dict()
    return (
        len(calls),
        random.random() == expected[0] and torch.equal(torch.get_rng_state(), expected[1]),
        all(torch.equal(before[key], after[key]) for key in before),
        all((p.grad == 1).all().item() for p in modules["m"].parameters()),
    )


def test_a_warm_up_step_changes_no_state(ranks):
    """Gradients, running statistics and random numbers stay the same."""
    assert ranks(_state_after_warm_up, 3) == [(1, True, True, True)] * 3


def test_no_warm_up_step_runs_where_the_order_does_not_matter(ranks):
    """On two ranks a sum has one order; in one process nothing is summed."""
    assert ranks(_state_after_warm_up, 2) == [(0, True, True, True)] * 2
    brain_dist.warm_up_step(lambda: pytest.fail("called"), nn.Linear(1, 1))
