"""Evaluation sharded over the ranks, with the results of one process."""

from __future__ import annotations

import math
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from brain_dist import compat
from brain_dist.collectives import gather_objects
from brain_dist.parallel.wrapped_modules import (
    RESHARDS,
    fsdp_parts,
    is_fsdp,
    is_wrapped,
    iter_modules,
)
from brain_dist.process_exit import register_exit_handler
from brain_dist.world import get_rank, get_world_size, is_distributed_initialized

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

T = TypeVar("T")


def shard_items(items: Iterable[T]) -> Iterator[T]:
    """Yield this rank's shard: of W ranks, rank r gets the items r, r + W, r + 2W and so on.

    No item is repeated or left out, so some ranks may get one item less.

    Parameters
    ----------
    items : iterable
        The same on every rank.  If loading is expensive, shard indices instead of batches.
    """
    return islice(iter(items), get_rank(), None, get_world_size())


def gather_sharded(results: Sequence[T]) -> list[T]:
    """Return the results of all ranks for sharded items, in the order of the items.

    Every rank has to call it.

    Parameters
    ----------
    results : sequence
        One for each item that `shard_items` gave this rank, in that order; picklable, tensors on
        the CPU.

    Returns
    -------
    list
        One for each item, on every rank.

    Raises
    ------
    ValueError
        On every rank, if the numbers of results are not those of sharded items.
    """
    shards = gather_objects(list(results))
    lengths = [len(shard) for shard in shards]
    total, world_size = sum(lengths), len(shards)
    expected = [len(range(rank, total, world_size)) for rank in range(world_size)]
    if lengths != expected:
        raise ValueError(
            f"each rank passes one result for each item of its shard, got {lengths!r} results "
            f"where {total} items are sharded as {expected!r}; put a batch's results in one list"
        )
    return [shards[i % world_size][i // world_size] for i in range(total)]


class ExactMean:
    """A weighted mean that is the same to the last digit however its values are sharded.

    Sums are kept without rounding (Shewchuk 1997, as in ``math.fsum``) and rounded once at the
    end, so that the result depends neither on the order nor on the number of ranks.

    Examples
    --------
    >>> mean = ExactMean()
    >>> for value in (1e16, 1.0, -1e16):
    ...     mean.add(value)
    >>> mean.result() == 1 / 3
    True
    """

    def __init__(self) -> None:
        self._value_partials: list[float] = []
        self._weight_partials: list[float] = []
        self._unread: list[tuple[torch.Tensor, float]] = []

    def add(self, value: float | torch.Tensor, weight: float = 1.0) -> None:
        """Add a value.

        Parameters
        ----------
        value : float or torch.Tensor
            A tensor of one element is read in `result`, not before.
        weight : float
            For example, the number of examples that this value is the mean of.
        """
        if isinstance(value, torch.Tensor):
            self._unread.append((value.detach(), weight))
        else:
            self._add(value, weight)

    def result(self) -> float:
        """Return the mean over all ranks, which all have to call it; NaN if nothing was added.

        In one process, the mean of what it added.
        """
        for value, weight in self._unread:
            self._add(float(value), weight)
        self._unread.clear()
        by_rank = gather_objects((self._value_partials, self._weight_partials))
        weight = _exact_sum([part for _, weights in by_rank for part in weights])
        total = _exact_sum([part for values, _ in by_rank for part in values])
        return total / weight if weight else math.nan

    def _add(self, value: float, weight: float) -> None:
        _add_exactly(self._value_partials, value * weight)
        _add_exactly(self._weight_partials, weight)


@contextmanager
def local_forward(
    modules: nn.Module | Mapping[str, nn.Module] | Iterable[nn.Module],
) -> Iterator[None]:
    """Let each rank run any number of forwards of the modules inside the block.

    A sharded evaluation needs it: a forward of DDP broadcasts rank 0's buffers, and one of FSDP2
    gathers parameters, so ranks with unequal numbers of batches would wait for each other for
    ever.  Both is done once at the start of the block, which every rank has to enter.  Call the
    modules under ``torch.no_grad()``.  FSDP2 holds all parameters on every rank until the block
    ends.

    Parameters
    ----------
    modules : nn.Module, mapping or iterable of nn.Module
    """
    if not is_distributed_initialized():
        yield
        return
    register_exit_handler(compat.default_group())
    all_modules = list(iter_modules(modules))
    ddp = [module for module in all_modules if isinstance(module, DistributedDataParallel)]
    fsdp_roots = [module for module in all_modules if is_fsdp(module)]
    share_buffers(all_modules)
    sharded = fsdp_parts(all_modules)
    syncs_before = [module.require_forward_param_sync for module in ddp]
    try:
        for module in ddp:
            module.require_forward_param_sync = False
        for part in sharded:
            part.unshard()
            part.set_reshard_after_forward(False, recurse=False)
        yield
    finally:
        for module, sync in zip(ddp, syncs_before, strict=True):
            module.require_forward_param_sync = sync
        for part in sharded:
            part.set_reshard_after_forward(vars(part).get(RESHARDS, True), recurse=False)
            part.reshard()
        for root in fsdp_roots:
            compat.reset_forward_order(root)


def share_buffers(
    modules: nn.Module | Mapping[str, nn.Module] | Iterable[nn.Module],
) -> None:
    """Copy rank 0's buffers of DDP and FSDP2 modules to every rank, which all have to call it.

    Without SyncBatchNorm each rank has running statistics of its own. DDP copies rank 0's in every
    forward; FSDP2 does not, so call this before an evaluation. A checkpoint has those of rank 0.

    Parameters
    ----------
    modules : nn.Module, mapping or iterable of nn.Module
        Others are left unchanged.
    """
    if not is_distributed_initialized():
        return
    for module in iter_modules(modules):
        if is_wrapped(module):
            for buffer in module.buffers():
                distributed.broadcast(buffer, src=0)


def _add_exactly(partials: list[float], value: float) -> None:
    """Add a value to non-overlapping partial sums, of growing magnitude, without rounding."""
    kept = 0
    for partial in partials:
        small, large = sorted((value, partial), key=abs)
        value = large + small
        rounding_error = small - (value - large)
        if rounding_error:
            partials[kept] = rounding_error
            kept += 1
    partials[kept:] = [value]


def _exact_sum(values: list[float]) -> float:
    # fsum raises an error for inf - inf, which is NaN elsewhere.
    if all(map(math.isfinite, values)):
        return math.fsum(values)
    return sum(values)
