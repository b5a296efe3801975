"""A pass whose order is known only by iterating a sampler, one batch after the other."""

from __future__ import annotations

import collections
import random
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from brain_data.fetching.fingerprint import fingerprint
from brain_data.fetching.iteration import CHECKED_BATCHES
from brain_data.fetching.worker import FetchRequest
from brain_data.order.seeding import TemporarySeed, hash_integers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_END = object()
_OBSERVED_DRAWS = 3


class SeededDraws:
    """Iterates a sampler whose random draws do not depend on those of training.

    The first batch is drawn from the global generators as they are: this is where samplers shuffle.
    Each further batch is drawn under a seed of its own. If nothing is drawn for the first of these,
    the remaining ones are not seeded.

    Parameters
    ----------
    sampler
        Any sampler or batch sampler.
    seed
        The seed.
    is_seeded
        False if an earlier iteration has shown that nothing is drawn.
    """

    def __init__(self, sampler: Any, seed: int, *, is_seeded: bool = True) -> None:
        self.num_drawn = 0
        self.is_seeded = is_seeded
        self._seed = seed
        self._items: Iterator[Any] = iter(sampler)
        self._has_drawn = False

    def __iter__(self) -> SeededDraws:
        """Return itself."""
        return self

    def __next__(self) -> Any:
        """Return what the sampler yields next."""
        number = self.num_drawn
        if not self.is_seeded or number == 0:
            item = next(self._items)
        else:
            with TemporarySeed(hash_integers(self._seed, number)):
                before = _generators() if number <= _OBSERVED_DRAWS else None
                item = next(self._items)
                if before is not None:
                    self._has_drawn = self._has_drawn or before != _generators()
                    self.is_seeded = self._has_drawn or number < _OBSERVED_DRAWS
        self.num_drawn += 1
        return item

    def skip_to(self, number: int, length_of_item: Callable[[Any], int]) -> int:
        """Advance the sampler up to an item, and return the total length of those before it."""
        total = 0
        while self.num_drawn < number and self.is_seeded:
            item: Any = next(self, _END)
            if item is _END:
                return total
            total += length_of_item(item)
        # Without seeds the sampler itself is iterated, at its own speed.
        lengths = list(map(length_of_item, islice(self._items, number - self.num_drawn)))
        self.num_drawn += len(lengths)
        return total + sum(lengths)


class LazyPass:
    """A pass over a map-style dataset with a sampler that cannot be planned.

    Parameters
    ----------
    sampler
        The batch sampler, or the sampler of a loader that does not batch.
    epoch
        The epoch.
    is_batched
        Whether ``sampler`` is a batch sampler.
    seed
        The seed of the sampler's draws.
    fetch_seed
        The seed of draws while rows are fetched; None if nothing is drawn.
    resume
        What `position` has returned; None for the first batch.
    """

    order_is_known = False
    is_padding = False
    padding_batches = 0

    def __init__(
        self,
        sampler: Any,
        epoch: int,
        *,
        is_batched: bool,
        seed: int,
        fetch_seed: int | None,
        resume: dict[str, Any] | None,
    ) -> None:
        self.epoch = epoch
        self.is_batched = is_batched
        self.num_yielded = 0 if resume is None else resume["position"]
        self.ended = False
        self.matches: bool | None = None
        self._sampler = sampler
        self._fetch_seed = fetch_seed
        self._resume = resume
        self._draws = SeededDraws(
            sampler, seed, is_seeded=resume is None or resume.get("is_seeded", True)
        )
        self._next_place = 0  # in the order of rows, as in a plan
        self._ahead: collections.deque[FetchRequest] = collections.deque()
        # The last batches that were drawn, and those that workers have prefetched.
        self._recent: collections.deque[FetchRequest] = collections.deque()

    def prepare(self) -> None:
        """Iterate the sampler up to the position, and compare the rows around it."""
        resume, self._resume = self._resume, None
        if resume is None:
            return
        if resume["finished"]:
            self._draws = SeededDraws((), 0)
            return
        position, checked_to = resume["position"], resume["checked_to"]
        first = max(0, position - CHECKED_BATCHES)
        self._next_place = self._draws.skip_to(first, len if self.is_batched else lambda _: 1)
        while self._draws.num_drawn < checked_to and (request := self._draw()) is not None:
            if request.number >= position:
                self._ahead.append(request)
        is_complete = self._draws.num_drawn == checked_to
        self.matches = is_complete and self._checksum() == resume["fingerprint"]

    def requests(self) -> Iterator[FetchRequest]:
        """Yield what the workers fetch, from the position on."""
        while (request := self._ahead.popleft() if self._ahead else self._draw()) is not None:
            yield request

    def position(self) -> dict[str, Any]:
        """Return the position after the batches yielded so far, as it is saved."""
        return {
            "epoch": self.epoch,
            "position": self.num_yielded,
            "start": 0,
            "finished": self.ended,
            "ended": self.ended,
            "checked_to": self._draws.num_drawn,
            "is_seeded": self._draws.is_seeded,
            "fingerprint": self._checksum(),
        }

    @property
    def num_rounds(self) -> int:
        """The number of batches in the epoch, on this rank."""
        return len(self._sampler)

    def rows_of(self, number: int) -> list[Any]:
        """Return the rows of a batch, if it was drawn recently."""
        return next((each.rows for each in self._recent if each.number == number), [])

    def _draw(self) -> FetchRequest | None:
        """Advance the sampler by one batch, and return its request; None at the end."""
        number, place = self._draws.num_drawn, self._next_place
        item: Any = next(self._draws, _END)
        if item is _END:
            return None
        rows: list[Any] = list(item) if self.is_batched else [item]
        self._next_place += len(rows)
        seed = self._fetch_seed
        request = FetchRequest(
            number, None if seed is None else hash_integers(seed, self.epoch, place), rows
        )
        self._recent.append(request)
        while self._recent and self._recent[0].number < self.num_yielded - CHECKED_BATCHES:
            self._recent.popleft()
        return request

    def _checksum(self) -> int:
        """Return the checksum of the rows of the last batches, and of those drawn after them."""
        crc = 0
        for request in self._recent:
            if request.number >= self.num_yielded - CHECKED_BATCHES:
                crc = fingerprint(request.rows, crc)
        return crc


def _generators() -> tuple[Any, ...]:
    """Return the states of the global generators, to compare them."""
    state = np.random.get_state(legacy=False)  # noqa: NPY002 - the global one
    numpy_state = (state["state"]["pos"], state["state"]["key"].tobytes())
    return torch.default_generator.get_state().numpy().tobytes(), random.getstate(), numpy_state
