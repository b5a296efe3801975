"""The samplers of a loader, its batch size and its ranks: what decides the plan of an epoch."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from brain_data.fetching.position import compact
from brain_data.order.distributed import DistributedSamplerWrapper, plan_of, shape_of
from brain_data.order.plan import EpochPlan, split_into_batches
from brain_data.order.sampler_order import order_of, settings_of
from brain_data.order.sharding import LastRound, ShardedPlan
from brain_dist import get_world_size

_DRAWN = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


class SamplerChain:
    """A loader's samplers, from the one that it iterates to the one that decides the order.

    Parameters
    ----------
    sampler
        The batch sampler, or the sampler of a loader that does not batch.
    batched
        Whether ``sampler`` is a batch sampler.
    drop_last
        Whether the loader drops incomplete batches.
    last_round
        How a round with fewer micro-batches than ranks is completed.
    """

    def __init__(
        self, sampler: Any, *, batched: bool, drop_last: bool, last_round: LastRound = "split"
    ) -> None:
        if last_round not in get_args(LastRound):
            raise ValueError(
                f"last_round must be one of {get_args(LastRound)!r}, got {last_round!r}: "
                "use one of these"
            )
        self.sampler = sampler
        self.last_round: LastRound = last_round
        self.batched = batched
        self.samplers = self.of(sampler)
        wrappers = [part for part in self.samplers if _shards(part)]
        self.wrapper: DistributedSamplerWrapper | None = wrappers[0] if wrappers else None
        self.rank, self.world_size = 0, 1
        self.drop_round = False
        if self.wrapper is not None:
            self.rank, self.world_size = self.wrapper.rank, self.wrapper.num_replicas
            # Padded rounds need not be dropped: as in one process, only the incomplete micro-batch
            # is dropped, and that by the batch sampler.
            self.drop_round = last_round == "split" and (self.wrapper.drop_last or drop_last)

    @staticmethod
    def of(sampler: Any) -> list[Any]:
        """Return a sampler and those inside it, as far as they are of known types."""
        samplers = [sampler]
        while type(samplers[-1]) is BatchSampler or isinstance(
            samplers[-1], DistributedSamplerWrapper
        ):
            samplers.append(samplers[-1].sampler)
        return samplers

    @property
    def epoch(self) -> int | None:
        """The epoch of the samplers, of the innermost that has one; None if none has."""
        epochs = (getattr(part, "epoch", None) for part in reversed(self.samplers))
        return next((epoch for epoch in epochs if isinstance(epoch, int)), None)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of every sampler."""
        for part in self.samplers:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)

    @property
    def has_length(self) -> bool:
        """Whether the sampler has a length; otherwise it is iterated, not planned."""
        try:
            len(self.sampler)
        except TypeError:
            return False
        return True

    def settings(self) -> dict[str, Any]:
        """Return what decides the plan, for the fingerprint of a saved position."""
        return compact(settings_of(self.sampler))

    def draw_seed(self) -> int | None:
        """Draw the seed of torch's RandomSampler, as it does itself; None for other samplers.

        The seed comes from the global generator, so a pass can be resumed only if it is saved.
        """
        return int(torch.empty((), dtype=torch.int64).random_().item()) if self.draws_seed else None

    @property
    def draws_seed(self) -> bool:
        """Whether one seed from the global generator decides the order."""
        inner = self.samplers[-1]
        return (
            type(inner) is RandomSampler
            and inner.generator is None
            and not inner.replacement
            and inner.num_samples == len(inner.data_source)
        )

    def plan(self, drawn: int | None) -> EpochPlan:
        """Return the epoch's plan for all ranks; ``drawn`` is what `draw_seed` returned."""
        if not self.batched:
            if self.wrapper is None:
                return split_into_batches(order_of(self.sampler, seed=drawn), 1)
            order = order_of(self.wrapper.sampler, seed=drawn)
            return split_into_batches(self.wrapper.reordered(order), 1)
        return plan_of(self.sampler, seed=drawn)

    def num_rounds(self) -> int:
        """Return the number of batches of each rank in an epoch."""
        if self.wrapper is None:
            return len(self.sampler)
        if self.batched:
            return self.shard(shape_of(self.sampler)).num_rounds
        return self.shard(split_into_batches(range(len(self.wrapper.sampler)), 1)).num_rounds

    def shard(self, plan: EpochPlan, start: int = 0) -> ShardedPlan:
        """Return a plan sharded among the ranks from a micro-batch on."""
        return ShardedPlan(plan, self.world_size, start, self.drop_round, self.last_round)

    @property
    def order_is_known(self) -> bool:
        """Whether the order follows from known settings, without a draw or an unknown sampler."""
        inner = self.samplers[-1]
        has_settings = hasattr(inner, "settings") or type(inner) is SequentialSampler
        return has_settings or isinstance(inner, DistributedSampler)

    @property
    def may_draw(self) -> bool:
        """Whether the order may be drawn from the global generators."""
        inner = self.samplers[-1]
        if self.order_is_known or isinstance(inner, (list, tuple, range)) or not self.has_length:
            return False
        return type(inner) not in _DRAWN or inner.generator is None

    @property
    def needs_checksum(self) -> bool:
        """Whether only iterating a sampler shows the order, whose checksum is then saved."""
        inner = self.samplers[-1]
        if self.order_is_known or (type(inner) is RandomSampler and inner.generator is None):
            return False
        # Without a wrapper each rank may have its own order, and the state is one for all ranks.
        return self.wrapper is not None or get_world_size() == 1


def _shards(sampler: Any) -> bool:
    return isinstance(sampler, DistributedSamplerWrapper) and not sampler.pad
