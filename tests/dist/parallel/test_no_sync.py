"""Gradients that stay local while they accumulate."""

import pytest
import torch
from torch import nn

import brain_dist


def _wrapped(parallel):
    torch.manual_seed(0)
    modules = nn.ModuleDict({"a": nn.Linear(2, 1), "b": nn.Linear(1, 1)})
    modules["frozen"] = nn.Linear(1, 1).requires_grad_(requires_grad=False)
    brain_dist.wrap_modules(modules, parallel=parallel, device="cpu")
    return modules


def _gradient(modules):
    total = 0.0
    for parameter in modules.parameters():
        if parameter.grad is not None:
            grad = parameter.grad
            total += float((grad.full_tensor() if hasattr(grad, "full_tensor") else grad).sum())
    return total


def _backward(modules, rank):
    x = torch.full((1, 2), rank + 1.0)
    modules["frozen"](modules["b"](modules["a"](x))).sum().backward()


def _accumulate(rank, parallel):
    """Return the gradients of two batches with and without no_sync on the first."""
    seen = []
    for use in (False, True):
        modules = _wrapped(parallel)
        with brain_dist.no_sync(modules, use):
            _backward(modules, rank)
        seen.append(_gradient(modules)) if parallel == "ddp" else None
        _backward(modules, rank)
        seen.append(_gradient(modules))
    return seen


def test_ddp_keeps_gradients_local_until_they_are_due(ranks):
    """Inside the block the ranks differ; the gradient of the step is the mean over ranks."""
    first, second = ranks(_accumulate, 2, "ddp")
    assert first[0] == second[0], "synchronised without no_sync"
    assert first[2] != second[2], "local within no_sync"
    assert first[1] == second[1] == pytest.approx(first[3]) == pytest.approx(second[3])


def test_fsdp_reduces_accumulated_gradients_once(ranks):
    """The gradient is the same as with a reduction at each batch."""
    first, second = ranks(_accumulate, 2, "fsdp")
    assert first == second
    assert first[0] == pytest.approx(first[1])


def _exception(rank, parallel):
    modules = _wrapped(parallel)
    with pytest.raises(KeyError), brain_dist.no_sync(modules):
        raise KeyError
    _backward(modules, rank)
    return _gradient(modules)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_an_exception_inside_turns_synchronisation_on_again(ranks, parallel):
    """In SpeechBrain it stays off, and the ranks' weights diverge."""
    first, second = ranks(_exception, 2, parallel)
    assert first == second != 0.0


def _nested(rank):
    modules = _wrapped("ddp")
    sharded = _wrapped("fsdp")
    for each in (modules, sharded):
        with brain_dist.no_sync(each):
            with brain_dist.no_sync(each):
                pass
            _backward(each, rank)
    inner = {p.grad for p in sharded["a"].parameters()}
    return _gradient(modules), inner == {None}


def test_an_inner_block_does_not_end_the_outer_one(ranks):
    """Synchronisation stays off until the outer block ends."""
    first, second = ranks(_nested, 2)
    assert first[0] != second[0]
    assert first[1]
    assert second[1]


def test_in_one_process_no_context_is_needed():
    """Nor with use=False."""
    module = nn.Linear(1, 1)
    context = brain_dist.no_sync([module])
    assert context is brain_dist.no_sync({"m": module}) is brain_dist.no_sync(module, use=False)
    with context, context:
        pass


def test_plain_modules_in_a_group_need_no_context(group_of_one):
    """Only DDP and FSDP2 modules synchronise."""
    modules = {"a": nn.Linear(1, 1), "b": nn.Sequential(nn.Linear(1, 1))}
    assert brain_dist.no_sync(modules) is brain_dist.no_sync([])
