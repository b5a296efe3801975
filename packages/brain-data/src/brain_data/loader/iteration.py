"""One pass over a dataset with rows: its deal, and how far it has come."""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING, Any

from brain_data.loader.position import Position, check_same
from brain_data.loader.worker import Progress, Request, explain_worker_failure
from brain_data.order.seeding import mix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from brain_data.loader.sampler_chain import Source
    from brain_data.order.plan import Deal, EpochPlan

logger = logging.getLogger(__name__)


class Pass:
    """A pass from a position to the end of its epoch, on one rank.

    Parameters
    ----------
    source
        What decides the plan.
    epoch
        The epoch.
    resume
        Where to begin; None for the first batch.
    seed
        The seed of what is drawn while rows are fetched; None where nothing is drawn.
    elastic
        Where the ranks do not reach the position, deal out anew what is left after it.
    """

    def __init__(
        self,
        source: Source,
        epoch: int,
        resume: Position | None,
        *,
        seed: int | None,
        elastic: bool = False,
    ) -> None:
        self.source = source
        self.epoch = epoch
        self.handed_out = 0
        self._begun_at = 0
        self._resume = resume
        self._seed = seed
        self._elastic = elastic
        self._drawn: int | None = None
        self._order: int | None = None
        self._deal: Deal | None = None
        self._prepared = False

    def prepare(self) -> None:
        """Make the plan and find the position in it; the second call does nothing."""
        if self._prepared:
            return
        self._prepared = True
        source, resume = self.source, self._resume
        if source.endless:
            self.handed_out = 0 if resume is None else resume.batches
            return
        # Drawn also where a saved one is used, so that as much is drawn as without a restart.
        self._drawn = source.draw_seed()
        if self._drawn is not None and resume is not None and resume.drawn is not None:
            self._drawn = resume.drawn
        plan = source.plan(self._drawn)
        if source.opaque:
            self._order = plan.checksum()
            if resume is not None and resume.order is not None:
                check_same(
                    "order",
                    {"checksum of the sampler's order": resume.order},
                    {"checksum of the sampler's order": self._order},
                )
        self._deal = self._seek(plan)
        self._deal.check()
        self._begun_at = self.handed_out

    def requests(self) -> Iterator[Request]:
        """Yield what the workers fetch, from the position on."""
        self.prepare()
        if self._deal is None:
            units = islice(iter(self.source.sampler), self.handed_out, None)
            for number, unit in enumerate(units, self.handed_out):
                yield Request(
                    number, self._seed_at(number), list(unit) if self.source.batched else [unit]
                )
            return
        rank = self.source.rank
        for number in range(self.handed_out, self._deal.rounds):
            place, rows = self._deal.rows(number, rank)
            yield Request(number, self._seed_at(place), rows)

    def position(self) -> Position:
        """Return where a pass that takes over from this one goes on."""
        deal = self._deal
        if deal is None:
            return Position(self.epoch, self.handed_out)
        return Position(
            epoch=self.epoch,
            batches=deal.position(self.handed_out),
            start=deal.start,
            finished=self.handed_out >= deal.rounds,
            drawn=self._drawn,
            order=self._order,
        )

    @property
    def is_filler(self) -> bool:
        """Whether the batch handed out last is another rank's too, see `Deal`."""
        # By its number: what is fetched ahead has no say in it.
        deal, number = self._deal, self.handed_out - 1
        return deal is not None and self._has_begun and deal.is_filler(number, self.source.rank)

    @property
    def fillers(self) -> int:
        """How many ranks were handed a filler with the batch handed out last."""
        deal = self._deal
        return 0 if deal is None or not self._has_begun else deal.fillers_in(self.handed_out - 1)

    @property
    def _has_begun(self) -> bool:
        return self.handed_out > self._begun_at

    @property
    def rounds(self) -> int:
        """The number of batches in the epoch, on this rank."""
        return len(self.source.sampler) if self._deal is None else self._deal.rounds

    def rows_of(self, number: int) -> list[Any]:
        """Return the rows of a batch of this rank."""
        return [] if self._deal is None else self._deal.rows(number, self.source.rank)[1]

    def _seek(self, plan: EpochPlan) -> Deal:
        """Return the deal, and note how much of it is done."""
        source, resume = self.source, self._resume
        start = 0 if resume is None else resume.start
        deal = source.deal(plan, start)
        if resume is None:
            return deal
        if resume.finished:
            self.handed_out = deal.rounds
            return deal
        if resume.batches > plan.batches:
            raise ValueError(
                f"a position of at most {plan.batches} batches is required, got "
                f"{resume.batches!r}: the state was saved for more data or smaller batches"
            )
        if self._elastic and not deal.reaches(resume.batches):
            logger.info("what is left after micro-batch %d is dealt out anew", resume.batches)
            deal = source.deal(plan, resume.batches)
        self.handed_out = deal.rounds_done(resume.batches)
        return deal

    def _seed_at(self, place: int) -> int | None:
        return None if self._seed is None else mix(self._seed, self.epoch, place)


class HandOut:
    """Hands batches out and counts them."""

    __slots__ = ("_batches", "_pass", "_progress")

    def __init__(self, current: Pass, batches: Iterator[Any], progress: Progress | None) -> None:
        self._pass = current
        self._batches = batches
        self._progress = progress

    def __iter__(self) -> HandOut:
        return self

    def __next__(self) -> Any:
        message = None
        try:
            batch = next(self._batches)
        except RuntimeError as error:
            message = explain_worker_failure(str(error), self._progress, self._pass.rows_of)
            if message is None:
                raise
        if message is not None:
            # Raised here and not from torch's error, whose traceback would keep the iterator and
            # with it the other workers alive, to be shut down at some later time.
            self._batches = iter(())
            raise RuntimeError(message)
        self._pass.handed_out += 1
        return batch

    def __len__(self) -> int:
        return self._pass.rounds
