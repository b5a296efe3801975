"""Bring DDP into the state it has after its first step, before a training is resumed."""

from __future__ import annotations

import random
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from brain_dist.parallel.wrapped_modules import members
from brain_dist.world import get_world_size, is_distributed_initialized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

# a + b is b + a to the last bit; only from three terms on does the order round differently.
ORDER_MATTERS_FROM = 3


def rehearse(
    step: Callable[[], object],
    modules: nn.Module | Mapping[str, nn.Module] | Iterable[nn.Module],
) -> None:
    """Run a forward and backward that leaves no trace but DDP's rebuilt buckets.

    After its first backward DDP regroups the gradients in the order in which they came, so the
    second step sums them in another order than the first; on three ranks or more the rounding
    differs.  A run that resumes is at its first step again, and exact only if it has rehearsed
    one (pytorch issues 35137 and 44798).  `GradientOrder` does the same without a batch; this
    is for what it does not know: ``static_graph``, where two steps are needed and done, and a
    state that was saved without an order.  Call it on every rank, after wrapping and before
    the state is loaded.

    Buffers, gradients and random number generators are put back; an optimizer must not step in
    it.  Where nothing is to be gained (no DDP, or fewer than three ranks) `step` is not called.

    Parameters
    ----------
    step : callable
        One forward and one backward of a batch of the usual kind, with synchronisation on.
    modules : nn.Module, mapping or iterable of nn.Module
        Those that the step uses.
    """
    if not is_distributed_initialized() or get_world_size() < ORDER_MATTERS_FROM:
        return
    wrapped = [m for m in members(modules) if isinstance(m, DistributedDataParallel)]
    if not wrapped:
        return
    # With a static graph DDP regroups after the second backward only.
    times = 2 if any(module.static_graph for module in wrapped) else 1
    for _ in range(times):
        with random_state(), tensors_put_back(list(members(modules))):
            step()


@contextmanager
def tensors_put_back(modules: list[nn.Module]) -> Iterator[None]:
    buffers = [(b, b.detach().clone()) for m in modules for b in m.buffers()]
    gradients = [(p, p.grad) for m in modules for p in m.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient


@contextmanager
def random_state() -> Iterator[None]:
    numpy: Any = sys.modules.get("numpy")
    states = random.getstate(), numpy.random.get_state() if numpy else None
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call,unused-ignore]  # untyped in torch
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(states[0])
        if numpy:
            numpy.random.set_state(states[1])
