"""What decides a loader's plan: its samplers, its batch size, its ranks."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, SequentialSampler

from brain_data.loader.position import compact
from brain_data.order.distributed import DistributedSamplerWrapper, plan_of, shape_of
from brain_data.order.plan import Deal, EpochPlan, LastRound, cut
from brain_data.order.samplers import order_of, settings_of
from brain_dist import get_world_size


class Source:
    """A loader's samplers, from the one that it iterates to the one that decides the order.

    Parameters
    ----------
    sampler
        The batch sampler, or the sampler of a loader that does not batch.
    batched
        Which of the two.
    drop_last
        Whether the loader leaves short batches out.
    last_round
        What becomes of a round with fewer micro-batches than ranks.
    """

    def __init__(
        self, sampler: Any, *, batched: bool, drop_last: bool, last_round: LastRound = "split"
    ) -> None:
        if last_round not in get_args(LastRound):
            raise ValueError(
                f"last_round must be one of {get_args(LastRound)!r}, got {last_round!r}"
            )
        self.sampler = sampler
        self.last_round: LastRound = last_round
        self.batched = batched
        self.chain = _chain(sampler)
        wrappers = [part for part in self.chain if _deals(part)]
        self.wrapper: DistributedSamplerWrapper | None = wrappers[0] if wrappers else None
        self.rank, self.world_size = 0, 1
        self.drop_round = False
        if self.wrapper is not None:
            self.rank, self.world_size = self.wrapper.rank, self.wrapper.num_replicas
            # Whole micro-batches need not be dropped to be equal in number: as in one process,
            # only the short one is left out, and that by the batch sampler.
            splits = last_round == "split"
            self.drop_round = splits and (self.wrapper.drop_last or drop_last)

    @property
    def epoch(self) -> int | None:
        """The samplers' epoch, the innermost's first; None where none has one."""
        epochs = (getattr(part, "epoch", None) for part in reversed(self.chain))
        return next((epoch for epoch in epochs if isinstance(epoch, int)), None)

    def set_epoch(self, epoch: int) -> None:
        """Tell every sampler the epoch."""
        for part in self.chain:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)

    @property
    def endless(self) -> bool:
        """Whether the sampler does not know its length: then it is iterated, not planned."""
        try:
            len(self.sampler)
        except TypeError:
            return True
        return False

    def settings(self) -> dict[str, Any]:
        """Return what decides the plan, for the fingerprint of a saved position."""
        return compact(settings_of(self.sampler))

    def draw_seed(self) -> int | None:
        """Draw the seed of torch's own RandomSampler, as it does itself; None for other samplers.

        It comes from the global generator, so only saving it lets a pass be continued.
        """
        inner = self.chain[-1]
        plain = (
            type(inner) is RandomSampler
            and inner.generator is None
            and not inner.replacement
            and inner.num_samples == len(inner.data_source)
        )
        return int(torch.empty((), dtype=torch.int64).random_().item()) if plain else None

    def plan(self, drawn: int | None) -> EpochPlan:
        """Return the epoch's plan for all ranks; ``drawn`` is what `draw_seed` returned."""
        if not self.batched:
            inner = self.sampler if self.wrapper is None else self.wrapper
            return cut(order_of(inner, seed=drawn), 1)
        return plan_of(self.sampler, seed=drawn)

    def rounds(self) -> int:
        """Return how many batches an epoch has on each rank."""
        if self.wrapper is None:
            return len(self.sampler)
        shape = shape_of(self.sampler) if self.batched else cut(range(len(self.wrapper.sampler)), 1)
        return self.deal(shape).rounds

    def deal(self, plan: EpochPlan, start: int = 0) -> Deal:
        """Return how a plan is dealt to the ranks from a micro-batch on."""
        return Deal(plan, self.world_size, start, self.drop_round, self.last_round)

    @property
    def pure(self) -> bool:
        """Whether the plan follows from settings that are known, and nothing is drawn for it."""
        inner = self.chain[-1]
        known = hasattr(inner, "settings") or type(inner) is SequentialSampler
        return known or isinstance(inner, DistributedSampler)

    @property
    def opaque(self) -> bool:
        """Whether only iterating a sampler tells the order, which is then saved as a checksum."""
        inner = self.chain[-1]
        if self.pure or (type(inner) is RandomSampler and inner.generator is None):
            return False
        # Without a wrapper each rank may have an order of its own, and the state is one for all.
        return self.wrapper is not None or get_world_size() == 1


def _chain(sampler: Any) -> list[Any]:
    chain = [sampler]
    while type(chain[-1]) is BatchSampler or isinstance(chain[-1], DistributedSamplerWrapper):
        chain.append(chain[-1].sampler)
    return chain


def _deals(sampler: Any) -> bool:
    return isinstance(sampler, DistributedSamplerWrapper) and not sampler.pad
