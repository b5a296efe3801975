"""Gradients averaged over samples instead of over batches."""

import pytest
import torch
from torch import nn

import brain_dist
from brain_dist import WeightedGradients

SIZES = [5, 1, 2, 7, 3, 1]


def _data():
    source = torch.Generator().manual_seed(1)
    return [torch.rand(n, 3, generator=source) for n in SIZES]


def _gradient(rank, parallel):
    """Accumulate this rank's shard of unequal batches in one step."""
    torch.manual_seed(0)
    modules = nn.ModuleDict({"m": nn.Linear(3, 4)})
    brain_dist.wrap_modules(modules, device="cpu", parallel=parallel)
    weighted = WeightedGradients()
    shard = list(brain_dist.shard_items(_data()))
    for _ in range(2):
        modules.zero_grad()
        for i, batch in enumerate(shard):
            with brain_dist.no_sync(modules, i < len(shard) - 1):
                loss = modules["m"](batch).square().mean()
                weight = len(batch) if i % 2 else torch.tensor(len(batch))
                weighted.scale(loss, weight).backward()
        weighted.normalize(modules.parameters())
    grads = [p.grad for p in modules.parameters()]
    full = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads]
    return torch.cat([g.flatten() for g in full]).tolist()


@pytest.mark.parametrize(
    ("world_size", "parallel"), [(1, "ddp"), (2, "ddp"), (3, "ddp"), (2, "fsdp")]
)
def test_a_step_has_the_gradient_of_the_mean_over_all_samples(ranks, world_size, parallel):
    """It depends neither on the batch sizes nor on which rank has which batch."""
    torch.manual_seed(0)
    module = nn.Linear(3, 4)
    module(torch.cat(_data())).square().mean().backward()
    expected = torch.cat([p.grad.flatten() for p in module.parameters()])
    for gradient in ranks(_gradient, world_size, parallel):
        assert torch.allclose(torch.tensor(gradient), expected, rtol=1e-5, atol=1e-7)


def test_it_works_without_a_group():
    """In one process."""
    module = nn.Linear(1, 1)
    weighted = WeightedGradients()
    for value, weight in ((1.0, 3), (5.0, 1)):
        weighted.scale(module(torch.tensor([[value]])).sum(), weight).backward()
    weighted.normalize(module.parameters())
    assert module.weight.grad.item() == 2.0


def test_weights_that_are_all_zero_make_the_gradients_zero():
    """Not NaN."""
    module = nn.Linear(1, 1)
    weighted = WeightedGradients()
    weighted.scale(module(torch.ones(1, 1)).sum(), 0).backward()
    weighted.normalize(module.parameters())
    assert module.weight.grad.item() == 0.0
