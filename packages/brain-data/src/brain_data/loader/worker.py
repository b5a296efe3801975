"""What a loader's workers run: rows fetched and collated under their batch's own seed."""

from __future__ import annotations

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

from brain_data.order.seeding import seed_generators, seeded
from brain_dist import outlive_stop_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PLAIN = (list, tuple, range, dict, torch.Tensor, np.ndarray, TensorDataset)
_TOGETHER = -1
_WORKER_FAILED = re.compile(r"DataLoader (worker \(pid|timed out)")


class Request(NamedTuple):
    """What the main process asks a worker for."""

    number: int
    """The batch's number in the epoch, on this rank."""
    seed: int | None
    """What the generators are seeded with; None where nothing is drawn."""
    rows: list[Any]


class Progress:
    """Where each worker is, in memory that they share with the main process.

    Written before each row, so that a worker that dies can be said to have been on that row.
    """

    _PID, _BATCH, _PLACE = range(3)

    def __init__(self, workers: int) -> None:
        # Without a lock: each worker writes its own three numbers.
        self._numbers = multiprocessing.RawArray("q", 3 * workers)
        self.workers = workers

    def begin(self, worker: int, batch: int) -> None:
        """Note that a worker begins a batch."""
        self._numbers[3 * worker + self._PID] = os.getpid()
        self._numbers[3 * worker + self._BATCH] = batch
        self.at(worker, 0)

    def at(self, worker: int, place: int) -> None:
        """Note which row of its batch a worker is on."""
        self._numbers[3 * worker + self._PLACE] = place

    def read(self) -> list[tuple[int, int, int]]:
        """Return (pid, batch, place in it) of each worker that has begun one."""
        flat = list(self._numbers)
        triples = [(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat), 3)]
        return [triple for triple in triples if triple[0]]


class WorkerStart:
    """What a worker does first: it learns to outlive a stop's SIGTERM, then what the user asks.

    And it ends where the process that started it is gone already. torch's watchdog compares with
    the parent that a worker has when its loop begins: a worker whose main process is killed before
    that would wait for work for ever.

    Parameters
    ----------
    then
        The user's `worker_init_fn`.
    is_child
        Whether workers are children of this process; with "forkserver" they are the server's.
    """

    def __init__(self, then: Callable[[int], None] | None, *, is_child: bool) -> None:
        self._then = then
        self._parent = os.getpid() if is_child else None

    def __call__(self, worker: int) -> None:
        """Run in the worker of this number."""
        if self._parent not in {None, os.getppid()}:
            os._exit(1)
        outlive_stop_signals()
        if self._then is not None:
            self._then(worker)


class StandIn:
    """Stands for the user's dataset in a loader: all but what it holds itself is the dataset's.

    So a `worker_init_fn` that reads or sets attributes of ``get_worker_info().dataset`` still does.
    """

    _own: ClassVar[frozenset[str]]

    def __getattr__(self, name: str) -> Any:
        if name in self._own:  # not there yet, while a spawned worker unpickles this
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._own:
            object.__setattr__(self, name, value)
        else:
            setattr(self._dataset, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle this object, not the dataset that it stands for."""
        return _restored, (type(self), dict(vars(self)))


class Rows(StandIn):
    """A dataset as the inner loader sees it: a request goes in, a collated batch comes out."""

    _own = frozenset(("_dataset", "_collate", "_batched", "_progress"))

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[Any], Any],
        *,
        batched: bool,
        progress: Progress | None,
    ) -> None:
        self._dataset = dataset
        self._collate = collate
        self._batched = batched
        self._progress = progress

    def __getitem__(self, request: Request) -> Any:
        info = get_worker_info()
        if info is None:
            if request.seed is None:
                return self._fetch(request, None)
            with seeded(request.seed):
                return self._fetch(request, None)
        if request.seed is not None:
            seed_generators(request.seed)
        if self._progress is not None:
            self._progress.begin(info.id, request.number)
        return self._fetch(request, info.id)

    def _fetch(self, request: Request, worker: int | None) -> Any:
        dataset = self._dataset
        left = iter(request.rows)
        together = False  # for an error: on one row, or on all of them
        try:
            if not self._batched:
                data = dataset[next(left)]
            elif getattr(dataset, "__getitems__", None):
                together = True
                if worker is not None:
                    self._note(worker, _TOGETHER)
                data = dataset.__getitems__(request.rows)
            elif worker is None:
                data = [dataset[row] for row in left]
            else:
                data = [dataset[row] for row in self._noting(worker, left)]
            together = True
            return self._collate(data)
        except StopIteration as error:
            # It would end the epoch in silence.
            raise RuntimeError(
                f"StopIteration {_where(request, None if together else left)}"
            ) from error
        except Exception as error:
            if hasattr(error, "add_note"):  # Python 3.11
                error.add_note(f"raised {_where(request, None if together else left)}")
            raise

    def _note(self, worker: int, place: int) -> None:
        assert self._progress is not None  # made wherever there are workers
        self._progress.at(worker, place)

    def _noting(self, worker: int, rows: Iterator[Any]) -> Iterator[Any]:
        """Yield rows, and note each for the main process before it is fetched."""
        for place, row in enumerate(rows):
            self._note(worker, place)
            yield row
        self._note(worker, _TOGETHER)


class Requests:
    """A sampler for the inner loader that asks its owner anew at each pass.

    The owner is referred to weakly: it holds the inner loader, and in a cycle the workers of a
    loader that is let go would live on until the next garbage collection, maybe a forked child's.
    """

    def __init__(self, begin: Callable[[], Iterator[Request]], length: Callable[[], int]) -> None:
        self._begin = WeakMethod(begin)
        self._length = WeakMethod(length)

    def __iter__(self) -> Iterator[Request]:
        begin = self._begin()
        assert begin is not None  # the owner is there: it iterates
        return begin()

    def __len__(self) -> int:
        length = self._length()
        return 0 if length is None else length()


def same(batch: Any) -> Any:
    """Return what is given: the inner loader's collate function."""
    return batch


def draws_nothing(dataset: Any, collate: Any) -> bool:
    """Tell whether fetching runs no code of the user's, so that no generator needs a seed.

    A dataset of another kind may say so by an attribute ``draws_nothing``.
    """
    if getattr(collate, "func", None) is not None:
        collate = collate.func
    plain_collate = collate in (default_collate, default_convert) or (
        getattr(collate, "__module__", None) == "brain_data.batch.padded_batch"
    )
    return plain_collate and _is_plain(dataset)


def explain_worker_failure(
    text: str, progress: Progress | None, rows: Callable[[int], list[Any]]
) -> str | None:
    """Turn torch's error about a worker into one that names rows; None for any other error."""
    if progress is None or not _WORKER_FAILED.search(text):
        return None
    seen = progress.read()
    dead = [triple for triple in seen if re.search(rf"\b{triple[0]}\b", text)]
    lines = []
    for pid, batch, place in dead or seen:
        asked = rows(batch)
        what = f"row {asked[place]!r}" if 0 <= place < len(asked) else f"rows {asked!r} together"
        lines.append(f"worker pid {pid} was on {what} of batch {batch}")
    if not lines:
        return None
    return (
        f"{text} ({'; '.join(lines)}). Fetch that row with num_workers=0 to see why, or look for "
        "the kernel's out-of-memory killer"
    )


def _restored(kind: type[StandIn], held: dict[str, Any]) -> StandIn:
    stand_in = object.__new__(kind)
    vars(stand_in).update(held)
    return stand_in


def _is_plain(dataset: Any) -> bool:
    if type(dataset) is Subset:
        return _is_plain(dataset.dataset)
    if type(dataset) is ConcatDataset:
        return all(_is_plain(part) for part in dataset.datasets)
    return type(dataset) in _PLAIN or bool(getattr(dataset, "draws_nothing", False))


def _where(request: Request, left: Iterator[Any] | None) -> str:
    """Say which row a batch had come to, by what is left of its rows."""
    if left is None:
        return f"while rows {request.rows!r} of batch {request.number} were put together"
    row = request.rows[len(request.rows) - length_hint(left) - 1]
    return f"by row {row!r} of batch {request.number}"
