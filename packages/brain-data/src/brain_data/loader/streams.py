"""Resuming an IterableDataset: by the dataset's own state, or by reading it again."""

from __future__ import annotations

import collections
import copy
import itertools
import logging
import multiprocessing
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch.utils.data import IterableDataset, get_worker_info

from brain_data.batch.device import to_device
from brain_data.loader.worker import StandIn
from brain_data.order.seeding import mix, seed_generators, seeded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)

Place = tuple[int, Any, bool]
"""Batches that a worker has given, the dataset's own state or None, and whether that was all."""

_WAIT = "wait"
_END = object()


@dataclass(frozen=True)
class StreamPosition:
    """Where the workers of a stream go on.

    Attributes
    ----------
    epoch
        The epoch; None where the state does not say.
    num_workers
        The workers that the stream was shared out to: each has a part of its own.
    batches
        Batches handed out.
    finished
        Whether the pass was over.
    turn
        The worker whose batch is next.
    places
        The place of each worker that has given a batch.
    """

    epoch: int | None
    num_workers: int
    batches: int = 0
    finished: bool = False
    turn: int = 0
    places: dict[int, Place] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """Return the position as it is saved."""
        return {
            "epoch": self.epoch,
            "num_workers": self.num_workers,
            "position": self.batches,
            "finished": self.finished,
            "turn": self.turn,
            "workers": {str(worker): list(place) for worker, place in sorted(self.places.items())},
        }

    @classmethod
    def replayed(cls, batches: int, num_workers: int) -> StreamPosition:
        """Return the position that a plain number of batches stands for."""
        shares = max(1, num_workers)
        places: dict[int, Place] = {
            worker: ((batches - worker + shares - 1) // shares, None, False)
            for worker in range(shares)
        }
        return cls(None, num_workers, batches, turn=batches % shares, places=places)

    @classmethod
    def checked(cls, state: dict[str, Any], dataset: Any, num_workers: int) -> StreamPosition:
        """Return a saved position that a dataset can go on from, or say why it cannot."""
        if "workers" not in state:
            raise ValueError(
                "the state of an IterableDataset is required, got one of a dataset with rows: give "
                "the loader the dataset that it had"
            )
        if state["position"] and state["num_workers"] != num_workers:
            raise ValueError(
                f"num_workers={state['num_workers']!r} is required, as each worker of an "
                f"IterableDataset has a part of its own, got {num_workers!r}: give the loader as "
                "many, or a dataset with rows"
            )
        places: dict[int, Place] = {int(k): (v[0], v[1], v[2]) for k, v in state["workers"].items()}
        own = any(place[1] is not None for place in places.values())
        if own and not hasattr(dataset, "load_state_dict"):
            raise ValueError(
                "a dataset with load_state_dict is required for its saved state, got "
                f"{type(dataset).__name__!r}: give the loader the dataset that it had"
            )
        return cls(
            state["epoch"],
            num_workers,
            state["position"],
            finished=state["finished"],
            turn=state["turn"],
            places=places,
        )


class Stream(StandIn, IterableDataset[Any]):
    """The user's stream as the inner loader sees it: collated batches, each with its place.

    Yields ``(worker, place, batch)``. After a restart the workers before the one whose turn it is
    first yield ``(worker, "wait", None)``, so that turns are taken as they would have been.
    """

    _own = frozenset(
        ("_dataset", "_collate", "_batch_size", "_drop_last", "_seed", "_resume", "_epoch")
    )

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[Any], Any],
        batch_size: int | None,
        *,
        drop_last: bool,
        seed: int,
        resume: StreamPosition | None,
    ) -> None:
        self._dataset = dataset
        self._collate = collate
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._seed = seed
        self._resume = resume
        # Shared memory: workers that persist learn the next pass's epoch from it.
        self._epoch = multiprocessing.RawValue("q", 0)

    def begin(self, epoch: int) -> None:
        """Tell this process and the workers the epoch of the next pass."""
        self._epoch.value = epoch

    def __iter__(self) -> Iterator[tuple[int, Any, Any]]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        resume, self._resume = self._resume, None  # for one pass only
        resume = StreamPosition(None, workers) if resume is None else resume
        done, state, ended = resume.places.get(worker, (0, None, False))
        if ended or resume.finished:
            return
        epoch = int(self._epoch.value)
        seeds = (mix(self._seed, epoch, place) for place in itertools.count(worker, workers))
        if hasattr(self._dataset, "set_epoch"):
            self._dataset.set_epoch(epoch)
        if state is not None:
            self._dataset.load_state_dict(state)
        rows = iter(self._dataset)
        for seed in itertools.islice(seeds, done):
            if state is None:  # read again, drawing what was drawn
                with _seeding(seed):
                    collections.deque(itertools.islice(rows, self._batch_size or 1), maxlen=0)
        if worker < resume.turn:
            yield worker, _WAIT, None
        for seed in seeds:
            with _seeding(seed):
                batch, ended = self._take(rows)
            if batch is _END:
                return
            done += 1
            yield worker, (done, self._state(), ended), batch

    def _take(self, rows: Iterator[Any]) -> tuple[Any, bool]:
        if self._batch_size is None:
            row = next(rows, _END)
            return (row if row is _END else self._collate(row)), row is _END
        taken = list(itertools.islice(rows, self._batch_size))
        short = len(taken) < self._batch_size
        if not taken or (short and self._drop_last):
            return _END, True
        return self._collate(taken), short

    def _state(self) -> Any:
        own = getattr(self._dataset, "state_dict", None)
        # A worker's is copied by being sent; in the main process the dataset may go on editing it.
        return copy.deepcopy(own()) if callable(own) else None


def _seeding(seed: int) -> AbstractContextManager[None]:
    """Seed for a block: a worker's generators for good, the main process's until its end."""
    if get_worker_info() is None:
        return seeded(seed)
    seed_generators(seed)
    return nullcontext()


class StreamPass:
    """One pass over a stream, and how far each worker's part of it has come."""

    def __init__(self, resume: StreamPosition | None, epoch: int, num_workers: int) -> None:
        resume = StreamPosition(epoch, num_workers) if resume is None else resume
        self.epoch = epoch
        self.handed_out = resume.batches
        self._finished = resume.finished
        self._num_workers = num_workers
        self._turn = resume.turn
        self._places = dict(resume.places)

    def announce(self, dataset: Any) -> None:
        """Say how the stream gets to where it was."""
        if self._finished:
            return
        if any(place[1] is not None for place in self._places.values()):
            logger.info("the stream goes on at batch %d by its own state", self.handed_out)
        elif self.handed_out:
            logger.warning(
                "%s has no state_dict: its first %d batches are read again to get to where it was",
                type(dataset).__name__,
                self.handed_out,
            )

    def unwrapped(self, items: Iterator[Any]) -> Iterator[Placed]:
        """Yield what the workers gave, without the waits."""
        return (Placed(*item) for item in items if not isinstance(item[1], str))

    def hand_out(self, items: Iterator[Placed]) -> Iterator[Any]:
        """Hand batches out and note the places that they lead to."""
        for item in items:
            self.handed_out += 1
            self._turn = (item.worker + 1) % max(1, self._num_workers)
            self._places[item.worker] = item.place
            yield item.batch
        self._finished = True

    def position(self) -> StreamPosition:
        """Return where a pass that takes over from this one goes on."""
        return StreamPosition(
            self.epoch,
            self._num_workers,
            self.handed_out,
            finished=self._finished,
            turn=self._turn,
            places=dict(self._places),
        )


@dataclass
class Placed:
    """A batch, and where its worker stands after it."""

    worker: int
    place: Place
    batch: Any

    def to(self, device: Any, *, non_blocking: bool) -> Placed:  # noqa: ARG002 - always without
        """Move the batch only."""
        return Placed(self.worker, self.place, to_device(self.batch, device))
