"""Reads the batches of one worker's part of a stream, from a position on."""

from __future__ import annotations

import collections
import copy
import itertools
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.utils.data import get_worker_info

from brain_data.fetching.fingerprint import fingerprint
from brain_data.order.seeding import seed_generators, temporary_seed
from brain_data.streams.position import WorkerPosition

if TYPE_CHECKING:
    from collections.abc import Callable

_END = object()


@dataclass(frozen=True)
class ReaderStart:
    """How a reader has reached its position.

    Attributes
    ----------
    position
        The position.
    used_state
        Whether the stream's own state was loaded.
    read_again
        Batches that were read again.
    state_error
        Why the stream's own state could not be used; None if it was, or if there is none.
    matches
        Whether the last batch before the position is the one that was yielded there; None if it
        could not be compared.
    """

    position: WorkerPosition
    used_state: bool = False
    read_again: int = 0
    state_error: str | None = None
    matches: bool | None = None


class StreamReader:
    """Reads batches of a stream in this process, each under a seed of its own.

    The state of a stream is asked of whatever has ``state_dict`` and ``load_state_dict``: the
    dataset, whose state is loaded before ``iter()``, or the iterator that ``iter()`` returns, whose
    state is loaded after it.

    Parameters
    ----------
    dataset
        The stream.
    collate
        Takes the rows of a batch, or the row if ``batch_size`` is None.
    batch_size
        Rows in a batch; None if the stream yields batches.
    drop_last
        Whether an incomplete batch is dropped.
    seed_of
        Returns the seed of a batch by its number; of ``iter()`` by -1.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[Any], Any],
        batch_size: int | None,
        *,
        drop_last: bool,
        seed_of: Callable[[int], int],
    ) -> None:
        self._dataset = dataset
        self._collate = collate
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._seed_of = seed_of
        self._rows: Any = iter(())
        self._owners: dict[str, Any] = {}
        self._state: dict[str, Any] | None = None
        self._start: dict[str, Any] | None = None
        self._done = 0
        self._pending: tuple[Any, bool, int] | None = None

    def start(self, position: WorkerPosition) -> ReaderStart:
        """Go to a position; a state that cannot be used is replaced by reading again."""
        if position.ended:
            return ReaderStart(position)
        if position.end is not None:
            return self._start_after(position.end)
        error = None
        if position.state is not None or (position.start is not None and not position.done):
            try:
                return self._start_from_state(position)
            except Exception as caught:  # noqa: BLE001 - no state of a stream's may end a run
                error = f"{type(caught).__name__}: {caught}"
        return self._read_again(position, error)

    def next(self) -> tuple[WorkerPosition, Any, int] | None:
        """Return the position after the next batch, the batch and its rows; None at the end."""
        before = self._state
        if self._pending is not None:
            before, (batch, is_last, rows) = self._start, self._pending
            self._pending = None
        else:
            batch, is_last, rows = self._fetch(self._done)
        if batch is _END:
            return None
        self._done += 1
        position = WorkerPosition(
            self._done, is_last, before, start=self._start, fingerprint=fingerprint(batch)
        )
        self._state = self._ask_state()
        return position, batch, rows

    def end(self) -> dict[str, Any] | None:
        """Return the stream's own state after its end."""
        return self._ask_state()

    def _start_after(self, end: dict[str, Any]) -> ReaderStart:
        """Begin the pass that follows the end of another one."""
        try:
            self._open(end)
            self._pending = self._fetch(0)
        except Exception:  # noqa: BLE001 - no state of a stream's may end a run
            self._pending = (_END, True, 0)
        if self._pending[0] is _END:  # the stream is still at its end: iter() begins the next pass
            self._pending = None
            self._open(None)
        return ReaderStart(WorkerPosition(start=self._start))

    def _start_from_state(self, position: WorkerPosition) -> ReaderStart:
        state = position.start if position.state is None else position.state
        self._open(state)
        self._start = self._start if position.start is None else position.start
        if position.state_is_after or not position.done:
            self._done = position.done
            return ReaderStart(self._position(position), used_state=True)
        self._done = position.done - 1
        if not self._reads_last_batch_of(position):
            raise _OtherBatchError(
                "the batch after the loaded state is another one than before the restart"
            )
        return ReaderStart(position, used_state=True, matches=True)

    def _read_again(self, position: WorkerPosition, error: str | None) -> ReaderStart:
        try:
            self._open(position.start)
        except Exception as caught:  # noqa: BLE001 - no state of a stream's may end a run
            error = error or f"{type(caught).__name__}: {caught}"
            self._open(None)
        if position.start is not None:
            self._start = position.start
        compared = position.fingerprint is not None and position.done > 0
        for number in range(position.done - compared):
            with _seeded(self._seed_of(number)):
                collections.deque(itertools.islice(self._rows, self._batch_size or 1), maxlen=0)
        self._done = position.done - compared
        matches = self._reads_last_batch_of(position) if compared else None
        self._state = self._ask_state()
        return ReaderStart(
            self._position(position),
            read_again=position.done,
            state_error=error,
            matches=matches,
        )

    def _reads_last_batch_of(self, position: WorkerPosition) -> bool:
        """Read the last batch before a position, and return whether it is the same one."""
        batch, _, _ = self._fetch(self._done)
        self._done += 1
        self._state = self._ask_state()
        return batch is not _END and fingerprint(batch) == position.fingerprint

    def _position(self, position: WorkerPosition) -> WorkerPosition:
        """Return a position to save before the first batch: that of the start, or the given one."""
        if position.done:
            return position
        return WorkerPosition(start=self._start)

    def _open(self, state: dict[str, Any] | None) -> None:
        """Begin to iterate over the stream, with a state of its own or without."""
        state = state or {}
        with _seeded(self._seed_of(-1)):
            if "dataset" in state:
                self._dataset.load_state_dict(copy.deepcopy(state["dataset"]))
            self._rows = iter(self._dataset)
            if "iterator" in state:
                self._rows.load_state_dict(copy.deepcopy(state["iterator"]))
        self._owners = {}
        if self._rows is not self._dataset and _has_state(self._dataset):
            self._owners["dataset"] = self._dataset
        if _has_state(self._rows):
            self._owners["iterator"] = self._rows
        self._done = 0
        self._state = self._start = self._ask_state()

    def _ask_state(self) -> dict[str, Any] | None:
        """Return the stream's own state, or None if it has none that can be copied."""
        if not self._owners:
            return None
        try:
            # Copied, since the stream may go on editing what it returned.
            return {name: copy.deepcopy(one.state_dict()) for name, one in self._owners.items()}
        except Exception:  # noqa: BLE001 - no state of a stream's may end a run
            self._owners = {}
            return None

    def _fetch(self, number: int) -> tuple[Any, bool, int]:
        """Return a batch or _END, whether the stream has ended, and the number of rows."""
        with _seeded(self._seed_of(number)):
            if self._batch_size is None:
                row = next(self._rows, _END)
                return (row, True, 0) if row is _END else (self._collate(row), False, 1)
            rows = list(itertools.islice(self._rows, self._batch_size))
            is_short = len(rows) < self._batch_size
            if not rows or (is_short and self._drop_last):
                return _END, True, 0
            return self._collate(rows), is_short, len(rows)


class _OtherBatchError(Exception):
    """Raised if a loaded state of a stream's does not lead to the same batch."""


def _has_state(stream: Any) -> bool:
    return callable(getattr(stream, "state_dict", None)) and callable(
        getattr(stream, "load_state_dict", None)
    )


def _seeded(seed: int) -> AbstractContextManager[None]:
    """Seed the generators: in a worker permanently, in the main process for a block."""
    if get_worker_info() is None:
        return temporary_seed(seed)
    seed_generators(seed)
    return nullcontext()
