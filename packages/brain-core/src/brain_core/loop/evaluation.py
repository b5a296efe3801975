"""Evaluation of all batches of a loader."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from brain_core.loop.epoch_pass import EpochPass, evaluating
from brain_core.loop.running_mean import LossMean
from brain_core.loop.stage_loader import common_batch_count, shard_evaluation_batches
from brain_dist import get_world_size, local_forward, reshard, share_buffers

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

__all__ = ["Counter", "evaluate_batches"]


class Counter(Protocol):
    """Counts the batches of a pass."""

    step: int


def evaluate_batches(
    loader: Any,
    evaluate: Callable[[Any], Any],
    *,
    modules: torch.nn.ModuleDict,
    counter: Counter,
    shard: bool,
    after_batch: Callable[[], None] | None,
    **pass_options: Any,
) -> float:
    """Evaluate every batch with the modules in evaluation mode, and return the mean loss.

    Modules that FSDP2 has sharded are sharded again at the end, on every rank.

    Parameters
    ----------
    loader : iterable
        The batches.
    evaluate : callable
        Returns the loss of a batch.
    modules : torch.nn.ModuleDict
        The modules to evaluate.
    counter : Counter
        Counts the batches from 1. Its former count is restored afterwards.
    shard : bool
        Whether each rank evaluates a shard of the batches.
    after_batch : callable, optional
        Called after each batch that every rank has.
    **pass_options
        Further arguments of `EpochPass`.

    Returns
    -------
    float
        Mean over the finite losses of all ranks.
    """
    reshard(modules)  # a hook may have run a forward
    share_buffers(modules)
    shard = shard and get_world_size() > 1
    batches = shard_evaluation_batches(loader) if shard else loader
    common_batches = 0 if after_batch is None else common_batch_count(batches)
    former_step, counter.step = counter.step, 0
    epoch_pass = EpochPass(batches, mean=LossMean(), **pass_options)
    unequal_forwards = local_forward(modules.values()) if shard else nullcontext()
    try:
        with evaluating(modules), unequal_forwards, epoch_pass:
            for batch in epoch_pass:
                counter.step += 1
                epoch_pass.add_loss(evaluate(batch))
                epoch_pass.batch_done()
                if after_batch is not None and counter.step <= common_batches:
                    after_batch()
    finally:
        counter.step = former_step
        reshard(modules)
    return epoch_pass.mean.mean_over_ranks()
