"""Resuming an IterableDataset, by its own state or by reading it again."""

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
from brain_data.loader.worker import DatasetProxy
from brain_data.order.seeding import hash_integers, seed_generators, temporary_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)

WorkerPosition = tuple[int, Any, bool]
"""Batches that a worker has yielded, the dataset's own state or None, and whether it has ended."""

_SKIP_TURN = "wait"
_END = object()


@dataclass(frozen=True)
class StreamPosition:
    """The position at which the workers of a stream resume.

    Attributes
    ----------
    epoch
        The epoch; None if the state does not say.
    num_workers
        The workers that share the stream: each has a part of its own.
    batches
        Batches yielded.
    finished
        Whether the pass had ended.
    next_worker
        The worker whose batch is next.
    workers
        The position of each worker that has yielded a batch.
    """

    epoch: int | None
    num_workers: int
    batches: int = 0
    finished: bool = False
    next_worker: int = 0
    workers: dict[int, WorkerPosition] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """Return the position as it is saved."""
        return {
            "epoch": self.epoch,
            "num_workers": self.num_workers,
            "position": self.batches,
            "finished": self.finished,
            "turn": self.next_worker,
            "workers": {str(worker): list(place) for worker, place in sorted(self.workers.items())},
        }

    @classmethod
    def from_batch_count(cls, batches: int, num_workers: int) -> StreamPosition:
        """Return the position after a number of batches, to be reached by reading again."""
        shares = max(1, num_workers)
        workers: dict[int, WorkerPosition] = {
            worker: ((batches - worker + shares - 1) // shares, None, False)
            for worker in range(shares)
        }
        return cls(None, num_workers, batches, next_worker=batches % shares, workers=workers)

    @classmethod
    def checked(cls, state: dict[str, Any], dataset: Any, num_workers: int) -> StreamPosition:
        """Return a saved position; raise ValueError if a dataset cannot resume from it."""
        if "workers" not in state:
            raise ValueError(
                "the state of an IterableDataset is required, got that of a map-style dataset: "
                "give the loader the dataset that it was saved with"
            )
        if state["position"] and state["num_workers"] != num_workers:
            raise ValueError(
                f"num_workers={state['num_workers']!r} is required, as each worker of an "
                f"IterableDataset has a part of its own, got {num_workers!r}: use that number of "
                "workers, or a map-style dataset"
            )
        workers: dict[int, WorkerPosition] = {
            int(k): (v[0], v[1], v[2]) for k, v in state["workers"].items()
        }
        has_own_state = any(place[1] is not None for place in workers.values())
        if has_own_state and not hasattr(dataset, "load_state_dict"):
            raise ValueError(
                "a dataset with load_state_dict is required for its saved state, got "
                f"{type(dataset).__name__!r}: give the loader the dataset that it was saved with"
            )
        return cls(
            state["epoch"],
            num_workers,
            state["position"],
            finished=state["finished"],
            next_worker=state["turn"],
            workers=workers,
        )


class StreamFetcher(DatasetProxy, IterableDataset[Any]):
    """The user's stream as the inner loader sees it: collated batches with their positions.

    Yields ``(worker, position, batch)``. After a restart the workers before the one whose turn it
    is first yield ``(worker, "wait", None)``, so that workers take turns as without a restart.
    """

    _own_attributes = frozenset(
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
        # Shared memory: persistent workers read the next pass's epoch from it.
        self._epoch = multiprocessing.RawValue("q", 0)

    def set_epoch_of_next_pass(self, epoch: int) -> None:
        """Set the epoch of the next pass, in this process and in the workers."""
        self._epoch.value = epoch

    def __iter__(self) -> Iterator[tuple[int, Any, Any]]:
        """Iterate over one worker's batches, from the position on."""
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        resume, self._resume = self._resume, None  # for one pass only
        resume = StreamPosition(None, workers) if resume is None else resume
        done, state, ended = resume.workers.get(worker, (0, None, False))
        if ended or resume.finished:
            return
        epoch = int(self._epoch.value)
        seeds = (
            hash_integers(self._seed, epoch, place) for place in itertools.count(worker, workers)
        )
        if hasattr(self._dataset, "set_epoch"):
            self._dataset.set_epoch(epoch)
        if state is not None:
            self._dataset.load_state_dict(state)
        rows = iter(self._dataset)
        for seed in itertools.islice(seeds, done):
            if state is None:  # read again, with the same draws
                with _seeding(seed):
                    collections.deque(itertools.islice(rows, self._batch_size or 1), maxlen=0)
        if worker < resume.next_worker:
            yield worker, _SKIP_TURN, None
        for seed in seeds:
            with _seeding(seed):
                batch, ended = self._fetch(rows)
            if batch is _END:
                return
            done += 1
            yield worker, (done, self._dataset_state(), ended), batch

    def _fetch(self, rows: Iterator[Any]) -> tuple[Any, bool]:
        """Return the next batch, or _END, and whether the stream has ended."""
        if self._batch_size is None:
            row = next(rows, _END)
            return (row if row is _END else self._collate(row)), row is _END
        fetched = list(itertools.islice(rows, self._batch_size))
        is_short = len(fetched) < self._batch_size
        if not fetched or (is_short and self._drop_last):
            return _END, True
        return self._collate(fetched), is_short

    def _dataset_state(self) -> Any:
        state_dict = getattr(self._dataset, "state_dict", None)
        # A worker's is copied on its way here; in the main process the dataset may keep editing it.
        return copy.deepcopy(state_dict()) if callable(state_dict) else None


def _seeding(seed: int) -> AbstractContextManager[None]:
    """Seed the generators: in a worker permanently, in the main process for a block."""
    if get_worker_info() is None:
        return temporary_seed(seed)
    seed_generators(seed)
    return nullcontext()


class StreamPass:
    """One pass over a stream, and the position of each worker in it."""

    def __init__(self, resume: StreamPosition | None, epoch: int, num_workers: int) -> None:
        resume = StreamPosition(epoch, num_workers) if resume is None else resume
        self.epoch = epoch
        self.num_yielded = resume.batches
        self._finished = resume.finished
        self._num_workers = num_workers
        self._next_worker = resume.next_worker
        self._workers = dict(resume.workers)

    def log_resumption(self, dataset: Any) -> None:
        """Log how the stream gets to its position."""
        if self._finished:
            return
        if any(place[1] is not None for place in self._workers.values()):
            logger.info("The stream resumes at batch %d from its own state", self.num_yielded)
        elif self.num_yielded:
            logger.warning(
                "%s has no state_dict: its first %d batches are read again to reach the position",
                type(dataset).__name__,
                self.num_yielded,
            )

    def unwrap(self, items: Iterator[Any]) -> Iterator[PositionedBatch]:
        """Yield what the workers yielded, without skipped turns."""
        return (PositionedBatch(*item) for item in items if not isinstance(item[1], str))

    def count(self, items: Iterator[PositionedBatch]) -> Iterator[Any]:
        """Yield batches, and record the positions after them."""
        for item in items:
            self.num_yielded += 1
            self._next_worker = (item.worker + 1) % max(1, self._num_workers)
            self._workers[item.worker] = item.position
            yield item.batch
        self._finished = True

    def position(self) -> StreamPosition:
        """Return the position after the batches yielded so far."""
        return StreamPosition(
            self.epoch,
            self._num_workers,
            self.num_yielded,
            finished=self._finished,
            next_worker=self._next_worker,
            workers=dict(self._workers),
        )


@dataclass
class PositionedBatch:
    """A batch, and the position of its worker after it."""

    worker: int
    position: WorkerPosition
    batch: Any

    def to(self, device: Any, *, non_blocking: bool) -> PositionedBatch:  # noqa: ARG002 - not forwarded
        """Move the batch only."""
        return PositionedBatch(self.worker, self.position, to_device(self.batch, device))
