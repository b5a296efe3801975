"""A stream as the inner loader and its workers see it."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.utils.data import IterableDataset, get_worker_info

from brain_data.batch.device import to_device
from brain_data.fetching.worker import DatasetProxy
from brain_data.order.seeding import hash_integers
from brain_data.streams.position import StreamPosition, WorkerPosition
from brain_data.streams.reader import ReaderStart, StreamReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from brain_data.streams.own_state import LoadedState


class StreamItem(NamedTuple):
    """What a worker yields: first how it has started, then batches with their positions.

    After a restart the workers before the one whose turn it is yield an item without a position and
    a batch once, so that workers take turns as without a restart. After the last batch an item
    without a position has the stream's own state, if there is one.
    """

    worker: int
    position: WorkerPosition | ReaderStart | None
    batch: Any = None
    num_rows: int = 0

    def to(self, device: Any, *, non_blocking: bool) -> StreamItem:  # noqa: ARG002 - not forwarded
        """Move the batch only."""
        return self._replace(batch=to_device(self.batch, device))


class StreamFetcher(DatasetProxy, IterableDataset[Any]):
    """The user's stream as the inner loader sees it: it yields a `StreamItem` for each batch.

    Parameters
    ----------
    dataset, collate, batch_size, drop_last
        As for `StreamReader`.
    resume
        The position at which the next pass begins; None for the first batch.
    loaded
        As for `StreamReader`.
    """

    _own_attributes = frozenset(
        ("_dataset", "_collate", "_batch_size", "_drop_last", "_resume", "_loaded", "_shared")
    )

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[Any], Any],
        batch_size: int | None,
        *,
        drop_last: bool,
        resume: StreamPosition | None,
        loaded: LoadedState,
    ) -> None:
        self._dataset = dataset
        self._collate = collate
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._resume = resume
        self._loaded = loaded
        # Shared memory: persistent workers read seed and epoch of the next pass from it.
        self._shared = multiprocessing.RawArray("q", 4)

    def set_next_pass(self, seed: int, epoch: int, first_batch: int, *, tells_epoch: bool) -> None:
        """Set the seed, the epoch and the number of the first batch of the next pass.

        The dataset is told the epoch only if the training loop sets it: a stream of Hugging Face's
        yields its shards in another order then.
        """
        seed &= (1 << 64) - 1
        self._shared[:] = [seed - ((seed >> 63) << 64), epoch, first_batch, tells_epoch]

    def __iter__(self) -> Iterator[StreamItem]:
        """Iterate over one worker's batches, from the position on."""
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        resume, self._resume = self._resume, None  # for one pass only
        resume = StreamPosition(None, workers) if resume is None else resume
        seed, epoch, first_batch, tells_epoch = self._shared

        def seed_of(number: int) -> int:
            place = -1 - worker if number < 0 else first_batch + number * workers + worker
            return hash_integers(seed, epoch, place)

        if tells_epoch and hasattr(self._dataset, "set_epoch"):
            self._dataset.set_epoch(epoch)
        reader = StreamReader(
            self._dataset,
            self._collate,
            self._batch_size,
            drop_last=self._drop_last,
            seed_of=seed_of,
            loaded=self._loaded,
        )
        start = reader.start(resume.workers.get(worker, WorkerPosition()))
        yield StreamItem(worker, start)
        if not start.position.ended:
            if worker < resume.next_worker:
                yield StreamItem(worker, None)
            while (item := reader.next()) is not None:
                position, batch, rows = item
                yield StreamItem(worker, position, batch, rows)
        if (end := reader.end()) is not None:
            yield StreamItem(worker, None, end)
