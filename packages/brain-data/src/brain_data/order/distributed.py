"""One sampler shared out over ranks, with nothing repeated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DistributedSampler

from brain_data.order.plan import Deal, EpochPlan, cut, from_batches
from brain_data.order.samplers import order_of, settings_of
from brain_dist import get_rank, get_world_size

if TYPE_CHECKING:
    from collections.abc import Iterator


class DistributedSamplerWrapper(DistributedSampler[Any]):
    """One rank's share of any sampler, or batch sampler, that is the same on all ranks.

    A batch sampler's batches are dealt in turn: rank ``r`` takes batches ``r``, ``r + world size``
    and so on. Each rank gets the same number of batches and nothing is repeated: the last round is
    split as by a `SaveableDataLoader` with ``last_round="split"``. A sampler's rows are dealt in
    turn, too; a `SaveableDataLoader` given such a sampler deals whole batches instead, so that a
    step's rows do not depend on the number of ranks.

    Parameters
    ----------
    sampler
        A sampler or a batch sampler.
    num_replicas
        The number of ranks; by default that of the process group or of the environment.
    rank
        This rank, likewise.
    shuffle
        Whether the wrapped sampler's units are put in random order, by ``seed + epoch``.
    seed
        The seed of that order.
    drop_last
        Leave the incomplete last round out.
    pad
        Repeat units from the start so that the ranks have equally many, as torch's
        `DistributedSampler` does.

    Raises
    ------
    ValueError
        If the rank is not below the number of ranks.
    """

    def __init__(
        self,
        sampler: Any,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        *,
        pad: bool = False,
    ) -> None:
        num_replicas = get_world_size() if num_replicas is None else num_replicas
        rank = get_rank() if rank is None else rank
        if not 0 <= rank < num_replicas:
            raise ValueError(
                f"a rank from 0 to {num_replicas - 1} is required, got {rank!r}: give the rank and "
                "the number of ranks of the same group"
            )
        # DistributedSampler reads only the length of what it is given.
        super().__init__(sampler, num_replicas, rank, shuffle, seed, drop_last)
        self.sampler = sampler
        self.pad = pad

    @property
    def gives_batches(self) -> bool:
        """Whether the wrapped sampler gives lists of rows."""
        return isinstance(self.sampler, BatchSampler) or hasattr(self.sampler, "plan")

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, here and in the wrapped sampler."""
        super().set_epoch(epoch)
        inner = self.sampler
        if not hasattr(inner, "set_epoch") and isinstance(inner, BatchSampler):
            inner = inner.sampler
        if hasattr(inner, "set_epoch"):
            inner.set_epoch(epoch)

    def order(self) -> Any:
        """Return the rows of all ranks, in order, for a sampler of rows."""
        return self.reordered(order_of(self.sampler))

    def reordered(self, order: Any) -> Any:
        """Return units in the order that ``shuffle`` asks for."""
        if not self.shuffle:
            return order
        chosen = self._permutation(len(order))
        return order[chosen] if isinstance(order, np.ndarray) else [order[i] for i in chosen]

    def whole_plan(self, seed: int | None = None) -> EpochPlan:
        """Return the batches of all ranks, in order, for a batch sampler."""
        plan = plan_of(self.sampler, seed=seed)
        if not self.shuffle:
            return plan
        return from_batches(plan.batch(i) for i in self._permutation(plan.batches).tolist())

    def settings(self) -> dict[str, Any]:
        """Return what decides the order, for the fingerprint of a saved position."""
        settings = settings_of(self.sampler)
        return {**settings, "reshuffled": self.seed} if self.shuffle else settings

    def __iter__(self) -> Iterator[Any]:
        """Iterate over this rank's share."""
        units = list(self.sampler)
        if self.shuffle:
            units = [units[i] for i in self._permutation(len(units)).tolist()]
        if units and isinstance(units[0], (list, tuple)) and not self.pad:
            deal = Deal(from_batches(units), self.num_replicas, drop_last=self.drop_last)
            deal.check()
            return (deal.rows(index, self.rank)[1] for index in range(deal.rounds))
        if self.drop_last:
            units = units[: len(units) - len(units) % self.num_replicas]
        elif self.pad and units:
            units += [units[i % len(units)] for i in range(-len(units) % self.num_replicas)]
        return iter(units[self.rank :: self.num_replicas])

    def __len__(self) -> int:
        """Return the number of this rank's batches or rows."""
        if self.gives_batches and not self.pad:
            return Deal(shape_of(self), self.num_replicas, drop_last=self.drop_last).rounds
        units = len(self.sampler)
        if self.pad:
            units += -units % self.num_replicas
        elif self.drop_last:
            units -= units % self.num_replicas
        mine: int = -(-(units - self.rank) // self.num_replicas)
        return max(0, mine)

    def _permutation(self, length: int) -> Any:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return torch.randperm(length, generator=generator).numpy()


def plan_of(batch_sampler: Any, *, seed: int | None = None) -> EpochPlan:
    """Return a batch sampler's epoch at once, for all ranks; ``seed`` as for `order_of`."""
    if isinstance(batch_sampler, DistributedSamplerWrapper) and not batch_sampler.pad:
        return batch_sampler.whole_plan(seed)
    if hasattr(batch_sampler, "plan"):
        plan: EpochPlan = batch_sampler.plan()
        return plan
    if type(batch_sampler) is BatchSampler:
        inner: Any = batch_sampler.sampler
        if isinstance(inner, DistributedSamplerWrapper) and not inner.pad:
            order = inner.reordered(order_of(inner.sampler, seed=seed))
        else:
            order = order_of(inner, seed=seed)
        return cut(order, batch_sampler.batch_size, drop_last=batch_sampler.drop_last)
    return from_batches(batch_sampler)


def shape_of(batch_sampler: Any) -> EpochPlan:
    """Return a plan whose cuts are those of `plan_of` and whose rows are not, at little cost."""
    if isinstance(batch_sampler, DistributedSamplerWrapper) and not batch_sampler.pad:
        # Where batches differ in size, the last ones decide how the last round is dealt.
        varies = batch_sampler.shuffle or type(batch_sampler.sampler) is not BatchSampler
        return batch_sampler.whole_plan() if varies else shape_of(batch_sampler.sampler)
    if type(batch_sampler) is BatchSampler:
        inner: Any = batch_sampler.sampler
        dealt = isinstance(inner, DistributedSamplerWrapper) and not inner.pad
        rows = range(len(inner.sampler if dealt else inner))
        return cut(rows, batch_sampler.batch_size, drop_last=batch_sampler.drop_last)
    return plan_of(batch_sampler)
