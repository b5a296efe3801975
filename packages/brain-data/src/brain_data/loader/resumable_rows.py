"""Passes of torch's DataLoader over a map-style dataset: only row numbers are found again."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from brain_data.errors import ResumeError
from brain_data.fetching.inner import RowLoader
from brain_data.fetching.iteration import EpochPass
from brain_data.fetching.lazy_pass import LazyPass, SeededDraws
from brain_data.fetching.position import (
    Position,
    check_unchanged,
    check_world_size,
    data_fingerprint,
)
from brain_data.fetching.sampler_chain import SamplerChain
from brain_data.fetching.worker import draws_no_random_numbers, log_replaced_seeds
from brain_data.order.distributed import DistributedSamplerWrapper
from brain_data.order.sampler_order import settings_of
from brain_dist import get_world_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.utils.data import DataLoader

    from brain_data.order.sharding import LastRound

logger = logging.getLogger(__name__)

# The whole epoch of these is known at its beginning: nothing that happens later changes it.
_PLANNED = (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
_RANK_ATTRIBUTES = ("num_replicas", "world_size", "num_shards", "rank")


class RowSource:
    """Passes over a map-style dataset, with the order of the loader's own samplers.

    Parameters
    ----------
    loader
        The user's loader.
    shard
        Whether its batches are assigned to the ranks round-robin, unless a sampler of its own does
        that already.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        *,
        shard: bool,
        elastic: bool,
        last_round: LastRound,
        resume_anyway: bool,
    ) -> None:
        self.loader = loader
        log_replaced_seeds(loader)
        self._resume_anyway = resume_anyway
        self.elastic = elastic
        sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
        self.is_sharded = shard and get_world_size() > 1 and _can_be_sharded(sampler)
        self._draws = _DrawsByBatch(sampler)
        self._sampler = sampler
        if self.is_sharded:
            known = all(_is_planned(each) for each in SamplerChain.of(sampler))
            self._sampler = DistributedSamplerWrapper(sampler if known else self._draws)
        self._rows = RowLoader()
        self._fingerprint: dict[str, Any] = {}
        self._draws_base_seed = True
        self.set_last_round(last_round)

    def set_last_round(self, last_round: LastRound) -> None:
        """Set how a round with fewer micro-batches than ranks is completed."""
        self._samplers = SamplerChain(
            self._sampler,
            batched=self.loader.batch_sampler is not None,
            drop_last=bool(self.loader.drop_last),
            last_round=last_round,
        )

    @property
    def is_planned(self) -> bool:
        """Whether the order of an epoch is computed at its beginning."""
        return self._samplers.has_length and (
            self.is_sharded or all(_is_planned(each) for each in self._samplers.samplers)
        )

    def begin(
        self,
        epoch: int,
        seed: int,
        resume: dict[str, Any] | None,
        *,
        follows: dict[str, Any] | None = None,  # noqa: ARG002 - nothing of the pass before is needed
        device: torch.device | None = None,
    ) -> tuple[EpochPass | LazyPass, Iterator[Any]]:
        """Begin a pass with the generators as they are; return it and its batches.

        What is drawn is what torch's loader draws: a base seed, unless workers persist, and what
        the samplers draw for their first batch.
        """
        loader = self.loader
        is_seeded = not draws_no_random_numbers(loader.dataset, loader.collate_fn)
        fetch_seed = seed if is_seeded else None
        self._draws.seed = seed
        epoch_pass = self._new_pass(epoch, seed, fetch_seed, resume)
        self._draws_base_seed = (
            self._rows.starts_workers(loader) if resume is None else resume["draws_base_seed"]
        )
        if self._draws_base_seed:
            torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
        epoch_pass.prepare()
        if epoch_pass.matches is False:
            check_same_order(
                type(self._samplers.samplers[-1]).__name__,
                epoch_pass.num_yielded,
                resume_anyway=self._resume_anyway,
            )
        batches = self._rows.iterate(
            epoch_pass, loader, device=device, generator=torch.Generator().manual_seed(seed)
        )
        return epoch_pass, batches

    def state(self, epoch_pass: EpochPass | LazyPass | None, epoch: int) -> dict[str, Any]:
        """Return the position of a pass as it is saved."""
        if epoch_pass is None:
            position = Position(epoch).fields()
        elif isinstance(epoch_pass, LazyPass):
            position = epoch_pass.position()
        else:
            position = epoch_pass.position().fields()
            position["fingerprint"], position["checked_to"] = epoch_pass.fingerprint()
        return {
            **position,
            "draws_base_seed": self._draws_base_seed,
            "world_size": self._samplers.world_size,
            "data": self._data_fingerprint(),
            "plan": self._samplers.settings(),
        }

    def check(self, state: dict[str, Any]) -> None:
        """Raise ValueError if the data, the samplers or the number of ranks have changed."""
        check_unchanged("dataset", state["data"], self._data_fingerprint())
        check_unchanged("plan", state["plan"], self._samplers.settings())
        if not (state["finished"] or self.elastic):
            present = self._samplers.world_size
            check_world_size(state["position"], state["start"], state["world_size"], present)

    def __len__(self) -> int:
        """Return the number of batches in an epoch, on this rank."""
        if not self.is_sharded:
            return len(self.loader)
        if isinstance(self._samplers.samplers[-1], _DrawsByBatch):  # iterating it would shuffle
            return math.ceil(len(self._draws) / self._samplers.world_size)
        return self._samplers.num_rounds()

    def _new_pass(
        self, epoch: int, seed: int, fetch_seed: int | None, resume: dict[str, Any] | None
    ) -> EpochPass | LazyPass:
        if not self.is_planned:
            return LazyPass(
                self._sampler,
                epoch,
                is_batched=self._samplers.batched,
                seed=seed,
                fetch_seed=fetch_seed,
                resume=resume,
            )
        position = None if resume is None else Position.from_fields(resume)
        epoch_pass = EpochPass(
            self._samplers,
            epoch,
            position,
            seed=fetch_seed,
            elastic=self.elastic,
            saves_checksum=False,
        )
        if resume is not None:
            epoch_pass.expected = resume["fingerprint"], resume["checked_to"]
        return epoch_pass

    def _data_fingerprint(self) -> dict[str, Any]:
        if not self._fingerprint:
            self._fingerprint = data_fingerprint(self.loader.dataset)
        return self._fingerprint


class _DrawsByBatch:
    """A sampler whose draws are those of a `LazyPass`, for a plan of all ranks."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self.seed = 0

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the sampler."""
        return SeededDraws(self._sampler, self.seed)

    def settings(self) -> dict[str, Any]:
        """Return what decides the order, as far as it is known."""
        return settings_of(self._sampler)

    def __len__(self) -> int:
        """Return the sampler's length."""
        return len(self._sampler)


def _is_planned(sampler: Any) -> bool:
    return type(sampler) in _PLANNED or hasattr(sampler, "settings")


def check_same_order(name: str, batches: int, *, resume_anyway: bool) -> None:
    """Raise ResumeError, or warn, since a sampler yields other rows than before."""
    problem = f"{name}, iterated again up to batch {batches}, yields other rows than before"
    if not resume_anyway:
        raise ResumeError(
            f"the same order of rows is required to resume, but {problem}: let it draw from "
            "Python's, NumPy's or torch's generators, or from a generator that is an attribute of "
            "it, or pass --resume_anyway (resume_anyway=True of the loader) to keep the position, "
            "at which rows may be repeated or missing"
        )
    logger.warning("Resuming anyway: %s; rows may be repeated or missing", problem)


def _can_be_sharded(sampler: Any) -> bool:
    """Return whether a sampler is the same on all ranks, and has a length."""
    try:
        len(sampler)
    except (TypeError, NotImplementedError):
        return False
    return not is_distributed(sampler)


def is_distributed(sampler: Any) -> bool:
    """Return whether a sampler, or one inside it, yields one rank's share already."""
    while sampler is not None:
        if isinstance(sampler, DistributedSampler):
            return True
        if any(isinstance(getattr(sampler, name, None), int) for name in _RANK_ATTRIBUTES):
            return True
        inner = getattr(sampler, "sampler", None)
        sampler = getattr(sampler, "batch_sampler", None) if inner is None else inner
    return False
