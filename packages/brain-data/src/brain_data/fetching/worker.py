"""What a loader's workers run: rows fetched and collated under the seed of their batch."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
from operator import length_hint
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from weakref import WeakMethod

import numpy as np
import torch
from torch.utils.data import (
    ConcatDataset,
    Subset,
    TensorDataset,
    default_collate,
    default_convert,
    get_worker_info,
)

from brain_data.order.seeding import TemporarySeed, seed_generators
from brain_dist import shield_from_stop_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.utils.data import DataLoader

logger = logging.getLogger(__name__)

_PLAIN = (list, tuple, range, dict, torch.Tensor, np.ndarray, TensorDataset)
_PADDED_BATCH_MODULE = "brain_data.batch.padded_batch"
_ALL_ROWS = -1
_WORKER_FAILED = re.compile(r"DataLoader (worker \(pid|timed out)")


class FetchRequest(NamedTuple):
    """One batch that the main process requests of a worker."""

    number: int
    """The batch's number in the epoch, on this rank."""
    seed: int | None
    """The seed of the generators; None if nothing is drawn."""
    rows: list[Any]


class WorkerProgress:
    """The row that each worker is on, in memory shared with the main process.

    It is written before each row, so that an error about a dead worker can name the row.
    """

    _PID, _BATCH, _INDEX = range(3)

    def __init__(self, workers: int) -> None:
        # Without a lock: each worker writes three numbers of its own.
        self._numbers = multiprocessing.RawArray("q", 3 * workers)
        self.workers = workers

    def begin_batch(self, worker: int, batch: int) -> None:
        """Record that a worker begins a batch."""
        self._numbers[3 * worker + self._PID] = os.getpid()
        self._numbers[3 * worker + self._BATCH] = batch
        self.begin_row(worker, 0)

    def begin_row(self, worker: int, index: int) -> None:
        """Record the index, in its batch, of the row that a worker begins."""
        self._numbers[3 * worker + self._INDEX] = index

    def read(self) -> list[tuple[int, int, int]]:
        """Return (pid, batch, index in it) of each worker that has begun a batch."""
        flat = list(self._numbers)
        triples = [(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat), 3)]
        return [triple for triple in triples if triple[0]]


class WorkerInit:
    """The first call in a worker: ignores stop signals, then calls the user's `worker_init_fn`.

    It ends a worker whose main process is gone already. torch's watchdog compares with the parent
    that a worker has when its loop begins: a worker whose main process is killed before that would
    wait for requests forever.

    Parameters
    ----------
    user_init_fn
        The user's `worker_init_fn`.
    is_child
        Whether workers are children of this process; with "forkserver" they are the server's.
    """

    def __init__(self, user_init_fn: Callable[[int], None] | None, *, is_child: bool) -> None:
        self._user_init_fn = user_init_fn
        self._parent = os.getpid() if is_child else None

    def __call__(self, worker: int) -> None:
        """Initialize the worker of this number."""
        if self._parent not in {None, os.getppid()}:
            os._exit(1)
        shield_from_stop_signals()
        if self._user_init_fn is not None:
            self._user_init_fn(worker)


def log_replaced_seeds(loader: DataLoader[Any]) -> None:
    """Log that seeds which a loader's ``worker_init_fn`` sets are replaced, if it has one."""
    if loader.num_workers and loader.worker_init_fn is not None:
        logger.info(
            "worker_init_fn is called in each worker, but generators that it seeds (torch's, "
            "random's, numpy's global ones) are seeded again for each batch by (seed, epoch, "
            "position), so that a batch does not depend on its worker"
        )


class DatasetProxy:
    """Takes the place of the user's dataset in a loader, and forwards attributes to it.

    A `worker_init_fn` that reads or sets attributes of ``get_worker_info().dataset`` therefore
    works as without the proxy.
    """

    _own_attributes: ClassVar[frozenset[str]]

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the dataset."""
        if name in self._own_attributes:  # not set yet, while a spawned worker unpickles this
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute of the dataset."""
        if name in self._own_attributes:
            object.__setattr__(self, name, value)
        else:
            setattr(self._dataset, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the proxy, not the dataset alone."""
        return _restore_proxy, (type(self), dict(vars(self)))


class BatchFetcher(DatasetProxy):
    """A map-style dataset as the inner loader sees it: indexed by requests, it returns batches."""

    _own_attributes = frozenset(("_dataset", "_collate", "_batched", "_progress"))

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[Any], Any],
        *,
        batched: bool,
        progress: WorkerProgress | None,
    ) -> None:
        self._dataset = dataset
        self._collate = collate
        self._batched = batched
        self._progress = progress

    def __getitem__(self, request: FetchRequest) -> Any:
        """Return the collated batch of a request."""
        info = get_worker_info()
        if info is None:
            if request.seed is None:
                return self._fetch(request, None)
            with TemporarySeed(request.seed):
                return self._fetch(request, None)
        if request.seed is not None:
            seed_generators(request.seed)
        if self._progress is not None:
            self._progress.begin_batch(info.id, request.number)
        return self._fetch(request, info.id)

    def _fetch(self, request: FetchRequest, worker: int | None) -> Any:
        dataset = self._dataset
        remaining = iter(request.rows)
        on_all_rows = False  # for an error: about one row, or about all of them
        try:
            if not self._batched:
                data = dataset[next(remaining)]
            elif getattr(dataset, "__getitems__", None):
                on_all_rows = True
                if worker is not None:
                    self._record(worker, _ALL_ROWS)
                data = dataset.__getitems__(request.rows)
            elif worker is None:
                data = [dataset[row] for row in remaining]
            else:
                data = [dataset[row] for row in self._recording(worker, remaining)]
            on_all_rows = True
            return self._collate(data)
        except StopIteration as error:
            # It would end the epoch silently.
            raise RuntimeError(
                f"StopIteration {_where(request, None if on_all_rows else remaining)}"
            ) from error
        except Exception as error:
            if hasattr(error, "add_note"):  # Python 3.11
                error.add_note(f"raised {_where(request, None if on_all_rows else remaining)}")
            raise

    def _record(self, worker: int, index: int) -> None:
        assert self._progress is not None  # made if there are workers
        self._progress.begin_row(worker, index)

    def _recording(self, worker: int, rows: Iterator[Any]) -> Iterator[Any]:
        """Yield rows, and record each for the main process before it is fetched."""
        for index, row in enumerate(rows):
            self._record(worker, index)
            yield row
        self._record(worker, _ALL_ROWS)


class RequestSampler:
    """A sampler for the inner loader that asks its owner for requests at each pass.

    The owner is referenced weakly: it holds the inner loader, and in a cycle the workers of a
    loader that is no longer referenced would live until the next garbage collection.
    """

    def __init__(
        self, begin: Callable[[], Iterator[FetchRequest]], length: Callable[[], int]
    ) -> None:
        self._begin = WeakMethod(begin)
        self._length = WeakMethod(length)

    def __iter__(self) -> Iterator[FetchRequest]:
        """Iterate over the requests of a pass."""
        begin = self._begin()
        assert begin is not None  # the owner exists: it iterates
        return begin()

    def __len__(self) -> int:
        """Return the number of batches in an epoch, on this rank."""
        length = self._length()
        return 0 if length is None else length()


def identity(batch: Any) -> Any:
    """Return the batch: the inner loader's collate function."""
    return batch


def draws_no_random_numbers(dataset: Any, collate: Any) -> bool:
    """Return whether fetching runs no code of the user's, so that no generator needs a seed.

    A dataset of another type may declare it by an attribute ``draws_no_random_numbers``.
    """
    if getattr(collate, "func", None) is not None:
        collate = collate.func
    is_known_collate = collate in (default_collate, default_convert) or (
        getattr(collate, "__module__", None) == _PADDED_BATCH_MODULE
    )
    return is_known_collate and _is_plain(dataset)


def explain_worker_failure(
    text: str, progress: WorkerProgress | None, rows_of: Callable[[int], list[Any]]
) -> str | None:
    """Extend torch's error about a worker by the rows; None for any other error."""
    if progress is None or not _WORKER_FAILED.search(text):
        return None
    workers = progress.read()
    dead = [triple for triple in workers if re.search(rf"\b{triple[0]}\b", text)]
    lines = []
    for pid, batch, index in dead or workers:
        rows = rows_of(batch)
        shown = f"row {rows[index]!r}" if 0 <= index < len(rows) else f"all rows, {rows!r},"
        lines.append(f"worker pid {pid} was on {shown} of batch {batch}")
    if not lines:
        return None
    return (
        f"{text} ({'; '.join(lines)}). Fetch that row with num_workers=0 to see why, or check the "
        "kernel's log for its out-of-memory killer"
    )


def _restore_proxy(kind: type[DatasetProxy], attributes: dict[str, Any]) -> DatasetProxy:
    proxy = object.__new__(kind)
    vars(proxy).update(attributes)
    return proxy


def _is_plain(dataset: Any) -> bool:
    if type(dataset) is Subset:
        return _is_plain(dataset.dataset)
    if type(dataset) is ConcatDataset:
        return all(_is_plain(part) for part in dataset.datasets)
    return type(dataset) in _PLAIN or bool(getattr(dataset, "draws_no_random_numbers", False))


def _where(request: FetchRequest, remaining: Iterator[Any] | None) -> str:
    """Name the row at which a batch failed, from the rows that remain."""
    if remaining is None:
        return f"while rows {request.rows!r} of batch {request.number} were collated"
    row = request.rows[len(request.rows) - length_hint(remaining) - 1]
    return f"by row {row!r} of batch {request.number}"
