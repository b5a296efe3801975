"""Bring DDP into its state after the first step, before a training is resumed."""

from __future__ import annotations

import random
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from brain_dist.parallel.wrapped_modules import iter_modules
from brain_dist.world import get_world_size, is_distributed_initialized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

# a + b equals b + a to the last bit; the order changes the rounding from three terms on.
ORDER_MATTERS_FROM = 3


def warm_up_step(
    step: Callable[[], object],
    modules: nn.Module | Mapping[str, nn.Module] | Iterable[nn.Module],
) -> None:
    """Run a forward and backward whose only effect is that DDP rebuilds its buckets.

    After its first backward DDP rebuilds its buckets in the order in which the gradients became
    ready, so the second step sums them in another order than the first; on three ranks or more the
    rounding differs.  A resumed run is at its first step again, and exact only after a warm-up
    step (pytorch issues 35137 and 44798).  `BucketOrder` does the same without a batch.  Use this
    function where `BucketOrder` does not work: with ``static_graph``, which needs two steps, and
    with a state that was saved without an order.  Call it on every rank, after wrapping and before
    the state is loaded.

    Buffers, gradients and random number generators are restored; `step` must not call an
    optimizer.  Without DDP, or on fewer than three ranks, `step` is not called.

    Parameters
    ----------
    step : callable
        One forward and one backward of an ordinary batch, with synchronisation on.
    modules : nn.Module, mapping or iterable of nn.Module
        Those that the step uses.
    """
    if not is_distributed_initialized() or get_world_size() < ORDER_MATTERS_FROM:
        return
    ddp = [m for m in iter_modules(modules) if isinstance(m, DistributedDataParallel)]
    if not ddp:
        return
    # With a static graph DDP rebuilds its buckets after the second backward only.
    steps = 2 if any(module.static_graph for module in ddp) else 1
    for _ in range(steps):
        with preserve_random_state(), preserve_tensors(list(iter_modules(modules))):
            step()


@contextmanager
def preserve_tensors(modules: list[nn.Module]) -> Iterator[None]:
    """Restore the modules' buffers and gradients at the end; inside, gradients start as None."""
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
def preserve_random_state() -> Iterator[None]:
    """Restore the random number generators of Python, numpy and torch at the end."""
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
