"""Evaluation dealt out over the ranks, with the answers of one process."""

from __future__ import annotations

import math
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from brain_dist import compat
from brain_dist.collectives import gather_objects
from brain_dist.parallel.wrapped_modules import RESHARDS, is_fsdp, members
from brain_dist.process_exit import wait_for_workers_at_exit
from brain_dist.world import get_rank, get_world_size, is_distributed_initialized

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

T = TypeVar("T")


def deal(items: Iterable[T]) -> Iterator[T]:
    """Yield this rank's share: of W ranks, rank r gets the items r, r + W, r + 2W and so on.

    Nothing is repeated and nothing left out, so some ranks may get one item less.

    Parameters
    ----------
    items : iterable
        The same on every rank; deal the indices rather than the batches, where loading costs.
    """
    return islice(iter(items), get_rank(), None, get_world_size())


def gather_dealt(results: Sequence[T]) -> list[T]:
    """Put the ranks' results for dealt items back into the order of the items.

    Every rank has to call it.

    Parameters
    ----------
    results : sequence
        One for each item that `deal` gave this rank, in that order; picklable, tensors on the CPU.

    Returns
    -------
    list
        One for each item there was, on every rank.

    Raises
    ------
    ValueError
        On every rank, if the numbers of results are not those of dealt items.
    """
    shares = gather_objects(list(results))
    lengths = [len(share) for share in shares]
    total, world_size = sum(lengths), len(shares)
    dealt = [len(range(rank, total, world_size)) for rank in range(world_size)]
    if lengths != dealt:
        raise ValueError(
            f"each rank brings one result for each item dealt to it, got {lengths!r} results "
            f"where {total} items are dealt as {dealt!r}; put a batch's results in one list"
        )
    return [shares[i % world_size][i // world_size] for i in range(total)]


class ExactMean:
    """A weighted mean that is the same to the last digit however its values are dealt out.

    Sums are kept without rounding (Shewchuk 1997, as in ``math.fsum``) and rounded once at the
    end, so that neither the order nor the number of ranks shows.

    Examples
    --------
    >>> mean = ExactMean()
    >>> for value in (1e16, 1.0, -1e16):
    ...     mean.add(value)
    >>> mean.result() == 1 / 3
    True
    """

    def __init__(self) -> None:
        self._sums: list[float] = []
        self._weights: list[float] = []
        self._waiting: list[tuple[torch.Tensor, float]] = []

    def add(self, value: float | torch.Tensor, weight: float = 1.0) -> None:
        """Count a value.

        Parameters
        ----------
        value : float or torch.Tensor
            A tensor of one element is read when the result is asked for, not before.
        weight : float
            For example, how many examples this value is the mean of.
        """
        if isinstance(value, torch.Tensor):
            self._waiting.append((value.detach(), weight))
        else:
            self._add(value, weight)

    def result(self) -> float:
        """Return the mean over all ranks, which all have to call it; NaN where nothing was added.

        In one process, the mean of what it added.
        """
        for value, weight in self._waiting:
            self._add(float(value), weight)
        self._waiting.clear()
        parts = gather_objects((self._sums, self._weights))
        weight = _sum([part for _, weights in parts for part in weights])
        return _sum([part for sums, _ in parts for part in sums]) / weight if weight else math.nan

    def _add(self, value: float, weight: float) -> None:
        _grow(self._sums, value * weight)
        _grow(self._weights, weight)


@contextmanager
def local_forward(
    modules: nn.Module | Mapping[str, nn.Module] | Iterable[nn.Module],
) -> Iterator[None]:
    """Let each rank call the modules as often as it likes inside the block.

    For an evaluation that is dealt out: a forward of DDP sends rank 0's buffers to all, and one
    of FSDP2 gathers parameters, so that ranks with unequal numbers of batches would wait for
    ever.  Both is done once here; every rank has to enter, and calls the modules under
    ``torch.no_grad()``.  FSDP2 holds the whole parameters on every rank until the block ends.

    Parameters
    ----------
    modules : nn.Module, mapping or iterable of nn.Module
    """
    if not is_distributed_initialized():
        yield
        return
    wait_for_workers_at_exit()
    found = list(members(modules))
    wrapped = [module for module in found if isinstance(module, DistributedDataParallel)]
    roots = [module for module in found if is_fsdp(module)]
    sharded = [
        part for root in roots for part in cast("nn.Module", root).modules() if is_fsdp(part)
    ]
    former = [module.require_forward_param_sync for module in wrapped]
    try:
        for module in wrapped:
            _share_buffers(module)
            module.require_forward_param_sync = False
        for part in sharded:
            part.unshard()
            part.set_reshard_after_forward(False, recurse=False)
        yield
    finally:
        for module, value in zip(wrapped, former, strict=True):
            module.require_forward_param_sync = value
        for part in sharded:
            part.set_reshard_after_forward(vars(part).get(RESHARDS, True), recurse=False)
            part.reshard()
        for root in roots:
            compat.forget_forwards(root)


def _share_buffers(module: nn.Module) -> None:
    for buffer in module.buffers():
        distributed.broadcast(buffer, src=0)


def _grow(partials: list[float], value: float) -> None:
    # Non-overlapping partial sums, by growing magnitude, that add up to the exact sum.
    kept = 0
    for partial in partials:
        small, large = sorted((value, partial), key=abs)
        value = large + small
        rest = small - (value - large)
        if rest:
            partials[kept] = rest
            kept += 1
    partials[kept:] = [value]


def _sum(values: list[float]) -> float:
    # fsum refuses inf - inf, which is NaN to everybody else.
    if all(map(math.isfinite, values)):
        return math.fsum(values)
    return sum(values)
