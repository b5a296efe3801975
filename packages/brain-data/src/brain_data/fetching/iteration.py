"""One pass over a map-style dataset: the rows of each batch, and the number of batches yielded."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from brain_data.fetching.fingerprint import fingerprint
from brain_data.fetching.position import Position, check_unchanged
from brain_data.fetching.worker import FetchRequest, WorkerProgress, explain_worker_failure
from brain_data.order.seeding import hash_integers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from brain_data.fetching.sampler_chain import SamplerChain
    from brain_data.order.plan import EpochPlan
    from brain_data.order.sharding import ShardedPlan

logger = logging.getLogger(__name__)

CHECKED_BATCHES = 8
"""Batches before a position, and after it, whose rows are part of its fingerprint."""


class IndexedPass(Protocol):
    """A pass over a map-style dataset: which rows each batch has, and how many were yielded."""

    num_yielded: int
    ended: bool
    is_batched: bool
    order_is_known: bool

    def prepare(self) -> None:
        """Compute the order and seek the position in it; a second call does nothing."""

    def requests(self) -> Iterator[FetchRequest]:
        """Yield what the workers fetch, from the position on."""

    def rows_of(self, number: int) -> list[Any]:
        """Return the rows of a batch, if they are known."""

    @property
    def num_rounds(self) -> int:
        """The number of batches in the epoch, on this rank."""


class EpochPass:
    """A pass from a position to the end of its epoch, on one rank.

    Parameters
    ----------
    samplers
        The loader's samplers, which decide the plan.
    epoch
        The epoch.
    resume
        The position to begin at; None for the first batch.
    seed
        The seed of random draws while rows are fetched; None if nothing is drawn.
    elastic
        Whether to shard the remaining batches in new groups if no round begins at the position.
    saves_checksum
        Whether the position holds a checksum of an order that only its sampler knows.
    drawing
        What the order is drawn in.
    """

    def __init__(
        self,
        samplers: SamplerChain,
        epoch: int,
        resume: Position | None,
        *,
        seed: int | None,
        elastic: bool = False,
        saves_checksum: bool = True,
        drawing: AbstractContextManager[None] | None = None,
    ) -> None:
        self.samplers = samplers
        self.is_batched = samplers.batched
        self.order_is_known = samplers.order_is_known
        self.epoch = epoch
        self.num_yielded = 0
        self.ended = False
        self._first = 0
        self._resume = resume
        self._seed = seed
        self._elastic = elastic
        self._saves_checksum = saves_checksum and samplers.needs_checksum
        self._drawing = nullcontext() if drawing is None else drawing
        self._drawn: int | None = None
        self._order: int | None = None
        self._shards: ShardedPlan | None = None
        self._is_prepared = False
        self._is_over = False  # without a plan
        self.expected: tuple[int, int] | None = None  # what `fingerprint` has returned

    @property
    def matches(self) -> bool | None:
        """Whether the rows around the position are the expected ones; None if none are."""
        if self.expected is None:
            return None
        return self.fingerprint(checked_to=self.expected[1]) == self.expected

    def prepare(self) -> None:
        """Compute the plan and seek the position in it; a second call does nothing."""
        if self._is_prepared:
            return
        self._is_prepared = True
        samplers, resume = self.samplers, self._resume
        if not samplers.has_length:
            self.num_yielded = 0 if resume is None else resume.batches
            self._is_over = resume is not None and resume.finished
            return
        with self._drawing:
            # Drawn even if a saved seed is used, so that as much is drawn as without a restart.
            self._drawn = samplers.draw_seed()
            if self._drawn is not None and resume is not None and resume.drawn is not None:
                self._drawn = resume.drawn
            plan = samplers.plan(self._drawn)
        if self._saves_checksum:
            self._order = plan.checksum()
            if resume is not None and resume.order is not None:
                check_unchanged(
                    "order",
                    {"checksum of the sampler's order": resume.order},
                    {"checksum of the sampler's order": self._order},
                )
        self._shards = self._seek(plan)
        self._shards.check()
        self._first = self.num_yielded

    def requests(self) -> Iterator[FetchRequest]:
        """Yield what the workers fetch, from the position on."""
        self.prepare()
        if self._shards is None:
            if self._is_over:
                return
            items = islice(iter(self.samplers.sampler), self.num_yielded, None)
            for number, item in enumerate(items, self.num_yielded):
                rows = list(item) if self.samplers.batched else [item]
                yield FetchRequest(number, self._seed_at(number), rows)
            return
        rank = self.samplers.rank
        batches = self._shards.batches(self.num_yielded, rank)
        for number, (place, rows) in enumerate(batches, self.num_yielded):
            yield FetchRequest(number, self._seed_at(place), rows)

    def position(self) -> Position:
        """Return the position after the batches yielded so far."""
        shards = self._shards
        if shards is None:
            return Position(self.epoch, self.num_yielded, finished=self.ended, ended=self.ended)
        return Position(
            epoch=self.epoch,
            batches=shards.position_after(self.num_yielded),
            start=shards.start,
            finished=self.num_yielded >= shards.num_rounds,
            ended=self.ended,
            drawn=self._drawn,
            order=self._order,
        )

    @property
    def is_padding(self) -> bool:
        """Whether the batch yielded last is a padding batch, see `ShardedPlan`."""
        # By its number, since workers have fetched batches ahead of it.
        shards, number = self._shards, self.num_yielded - 1
        if shards is None or not self._has_yielded:
            return False
        return shards.is_padding(number, self.samplers.rank)

    @property
    def padding_batches(self) -> int:
        """How many ranks got a padding batch in the round yielded last."""
        shards = self._shards
        if shards is None or not self._has_yielded:
            return 0
        return shards.padding_batches_in(self.num_yielded - 1)

    @property
    def _has_yielded(self) -> bool:
        return self.num_yielded > self._first

    @property
    def num_rounds(self) -> int:
        """The number of batches in the epoch, on this rank."""
        return len(self.samplers.sampler) if self._shards is None else self._shards.num_rounds

    def rows_of(self, number: int) -> list[Any]:
        """Return the rows of a batch of this rank."""
        return [] if self._shards is None else self._shards.rows(number, self.samplers.rank)[1]

    def fingerprint(self, checked_to: int | None = None) -> tuple[int, int]:
        """Return a checksum of the rows around the position, and the batch before which it ends."""
        assert self._shards is not None  # only with a plan
        plan, position = self._shards.plan, self._shards.position_after(self.num_yielded)
        high = position + CHECKED_BATCHES if checked_to is None else checked_to
        high = min(plan.num_batches, high)
        crc = 0
        for index in range(max(0, position - CHECKED_BATCHES), high):
            crc = fingerprint(plan.batch(index), crc)
        return crc, high

    def _seek(self, plan: EpochPlan) -> ShardedPlan:
        """Return the sharded plan, and count the batches before the position as yielded."""
        samplers, resume = self.samplers, self._resume
        start = 0 if resume is None else resume.start
        shards = samplers.shard(plan, start)
        if resume is None:
            return shards
        if resume.finished:
            self.num_yielded = shards.num_rounds
            return shards
        if resume.batches > plan.num_batches:
            raise ValueError(
                f"a position of at most {plan.num_batches} batches is required, got "
                f"{resume.batches!r}: the state was saved with more data or smaller batches; "
                "restore those, or let the epoch start again, as Brain does with "
                "--accept_changes=data"
            )
        if self._elastic and not shards.is_round_start(resume.batches):
            logger.info("Sharding the micro-batches after %d in new groups", resume.batches)
            shards = samplers.shard(plan, resume.batches)
        self.num_yielded = shards.rounds_before(resume.batches)
        return shards

    def _seed_at(self, place: int) -> int | None:
        return None if self._seed is None else hash_integers(self._seed, self.epoch, place)


class CountingIterator:
    """Yields batches and counts them in their pass."""

    __slots__ = ("_batches", "_pass", "_progress")

    def __init__(
        self, epoch_pass: IndexedPass, batches: Iterator[Any], progress: WorkerProgress | None
    ) -> None:
        self._pass = epoch_pass
        self._batches = batches
        self._progress = progress

    def __iter__(self) -> CountingIterator:
        """Return itself."""
        return self

    def __next__(self) -> Any:
        """Return the next batch; an error about a worker names the row that it was on."""
        message = None
        try:
            batch = next(self._batches)
        except StopIteration:
            self._pass.ended = True
            raise
        except RuntimeError as error:
            message = explain_worker_failure(str(error), self._progress, self._pass.rows_of)
            if message is None:
                raise
        if message is not None:
            # Raised here and not from torch's error, whose traceback would keep the iterator and
            # with it the other workers alive, to be shut down at an arbitrary later time.
            self._batches = iter(())
            raise RuntimeError(message)
        self._pass.num_yielded += 1
        return batch

    def __len__(self) -> int:
        """Return the number of batches in the epoch, on this rank."""
        return self._pass.num_rounds
