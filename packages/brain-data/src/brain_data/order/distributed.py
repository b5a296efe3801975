"""One sampler sharded among the ranks, with nothing repeated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DistributedSampler

from brain_data.order.keyed import KeyedOrder
from brain_data.order.plan import EpochPlan, from_batches, split_into_batches
from brain_data.order.sampler_order import order_of, settings_of
from brain_data.order.sharding import ShardedPlan
from brain_dist import get_rank, get_world_size

if TYPE_CHECKING:
    from collections.abc import Iterator


class DistributedSamplerWrapper(DistributedSampler[Any]):
    """One rank's shard of any sampler, or batch sampler, that is the same on all ranks.

    The batches of a batch sampler are assigned round-robin: rank ``r`` takes batches ``r``,
    ``r + world_size`` and so on. Each rank gets the same number of batches and nothing is repeated:
    the last round is split as by a `SaveableDataLoader` with ``last_round="split"``. The rows of a
    sampler are assigned round-robin, too; a `SaveableDataLoader` that is given such a sampler
    assigns whole batches instead, so that the rows of a step do not depend on the number of ranks.

    Parameters
    ----------
    sampler
        A sampler or a batch sampler.
    num_replicas
        The number of ranks; default: that of the process group or of the environment.
    rank
        The rank of this process; default: likewise.
    shuffle
        Whether to shuffle what the wrapped sampler yields, by ``seed + epoch``.
    seed
        The seed of that order.
    drop_last
        Whether to drop an incomplete last round.
    pad
        Whether to repeat batches or rows from the beginning, so that each rank has the same number,
        as torch's `DistributedSampler` does.

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
        # DistributedSampler reads only the length of its dataset.
        super().__init__(sampler, num_replicas, rank, shuffle, seed, drop_last)
        self.sampler = sampler
        self.pad = pad

    @property
    def yields_batches(self) -> bool:
        """Whether the wrapped sampler yields lists of rows."""
        return isinstance(self.sampler, BatchSampler) or hasattr(self.sampler, "plan")

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, here and in the wrapped sampler."""
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
        """Return rows shuffled if ``shuffle`` is set, else unchanged."""
        if not self.shuffle:
            return order
        permutation = self._permutation(len(order))
        if isinstance(order, (np.ndarray, KeyedOrder)):
            return order[permutation]
        return [order[i] for i in permutation]

    def plan_of_all_ranks(self, seed: int | None = None) -> EpochPlan:
        """Return the batches of all ranks, in order, for a batch sampler."""
        plan = plan_of(self.sampler, seed=seed)
        if not self.shuffle:
            return plan
        return from_batches(plan.batch(i) for i in self._permutation(plan.num_batches).tolist())

    def settings(self) -> dict[str, Any]:
        """Return what decides the order, for the fingerprint of a saved position."""
        settings = settings_of(self.sampler)
        return {**settings, "reshuffled": self.seed} if self.shuffle else settings

    def __iter__(self) -> Iterator[Any]:
        """Iterate over this rank's shard."""
        items = list(self.sampler)
        if self.shuffle:
            items = [items[i] for i in self._permutation(len(items)).tolist()]
        if items and isinstance(items[0], (list, tuple)) and not self.pad:
            shards = ShardedPlan(from_batches(items), self.num_replicas, drop_last=self.drop_last)
            shards.check()
            return (shards.rows(index, self.rank)[1] for index in range(shards.num_rounds))
        if self.drop_last:
            items = items[: len(items) - len(items) % self.num_replicas]
        elif self.pad and items:
            items += [items[i % len(items)] for i in range(-len(items) % self.num_replicas)]
        return iter(items[self.rank :: self.num_replicas])

    def __len__(self) -> int:
        """Return the number of this rank's batches or rows."""
        if self.yields_batches and not self.pad:
            return ShardedPlan(
                shape_of(self), self.num_replicas, drop_last=self.drop_last
            ).num_rounds
        items = len(self.sampler)
        if self.pad:
            items += -items % self.num_replicas
        elif self.drop_last:
            items -= items % self.num_replicas
        return len(range(self.rank, items, self.num_replicas))

    def _permutation(self, length: int) -> Any:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return torch.randperm(length, generator=generator).numpy()


def plan_of(batch_sampler: Any, *, seed: int | None = None) -> EpochPlan:
    """Return the epoch of a batch sampler, of all ranks; ``seed`` as for `order_of`."""
    if isinstance(batch_sampler, DistributedSamplerWrapper) and not batch_sampler.pad:
        return batch_sampler.plan_of_all_ranks(seed)
    if hasattr(batch_sampler, "plan"):
        plan: EpochPlan = batch_sampler.plan()
        return plan
    if type(batch_sampler) is BatchSampler:
        inner: Any = batch_sampler.sampler
        if isinstance(inner, DistributedSamplerWrapper) and not inner.pad:
            order = inner.reordered(order_of(inner.sampler, seed=seed))
        else:
            order = order_of(inner, seed=seed)
        return split_into_batches(
            order, batch_sampler.batch_size, drop_last=batch_sampler.drop_last
        )
    return from_batches(batch_sampler)


def shape_of(batch_sampler: Any) -> EpochPlan:
    """Return a plan with the bounds of `plan_of` but arbitrary rows, at little cost."""
    if isinstance(batch_sampler, DistributedSamplerWrapper) and not batch_sampler.pad:
        # If batches differ in size, the last ones decide how the last round is sharded.
        varies = batch_sampler.shuffle or type(batch_sampler.sampler) is not BatchSampler
        return batch_sampler.plan_of_all_ranks() if varies else shape_of(batch_sampler.sampler)
    if type(batch_sampler) is BatchSampler:
        inner: Any = batch_sampler.sampler
        is_sharded = isinstance(inner, DistributedSamplerWrapper) and not inner.pad
        rows = range(len(inner.sampler if is_sharded else inner))
        return split_into_batches(rows, batch_sampler.batch_size, drop_last=batch_sampler.drop_last)
    return plan_of(batch_sampler)
