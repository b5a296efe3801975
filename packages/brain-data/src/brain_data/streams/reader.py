"""Reads the batches of one worker's part of a stream, from a position on."""

from __future__ import annotations

import collections
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.utils.data import get_worker_info

from brain_data.fetching.fingerprint import fingerprint
from brain_data.fetching.json_values import from_json, to_json
from brain_data.order.seeding import TemporarySeed, seed_generators
from brain_data.streams.own_state import (
    LoadedState,
    attributes,
    has_state,
    set_attributes,
    state_of,
)
from brain_data.streams.position import WorkerPosition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_END = object()
_CHECKED_ROWS = 8
"""Rows before a position that are read again and compared; a few could be equal by chance."""


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
        Whether the last batches before the position are those that were yielded there; None if
        they could not be compared.
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
    state is loaded after it. A dataset that is its own iterator may expect either.

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
    loaded
        The state that the dataset was given for this pass or for one before.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[Any], Any],
        batch_size: int | None,
        *,
        drop_last: bool,
        seed_of: Callable[[int], int],
        loaded: LoadedState,
    ) -> None:
        self._dataset = dataset
        self._collate = collate
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._seed_of = seed_of
        self._loaded = loaded
        self._rows: Any = iter(())
        self._owners: dict[str, Any] = {}
        self._state: dict[str, Any] | None = None
        self._start: dict[str, Any] | None = None
        self._origin: Any = None
        self._done = 0
        self._recent: collections.deque[_Read] = collections.deque()
        self._pending: tuple[Any, bool, int] | None = None

    def start(self, position: WorkerPosition) -> ReaderStart:
        """Go to a position; a state that cannot be used is replaced by reading again."""
        if position.end is not None and not position.ended:
            return self._start_after(position.end)
        before = attributes(self._dataset)
        error = None
        for state, loads_first in self._ways_to_open(position):
            try:
                return self._start_from_state(position, state, loads_first=loads_first)
            except Exception as caught:  # noqa: BLE001, PERF203 - no state of a stream's may end a run
                error = error or f"{type(caught).__name__}: {caught}"
                set_attributes(self._dataset, before)
        if position.ended and position.start is None:
            return ReaderStart(position)  # nothing is left, and nothing is known to be restored
        return self._read_again(position, error, before)

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
        self._remember(_Read(before, fingerprint(batch), rows))
        position = WorkerPosition(
            self._done,
            is_last,
            self._recent[0].state,
            start=self._start,
            origin=self._origin,
            fingerprint=self._checksum(),
            checked=len(self._recent),
        )
        self._state = self._ask_state()
        return position, batch, rows

    def end(self) -> dict[str, Any] | None:
        """Return the stream's own state after its end."""
        return self._ask_state()

    def _start_after(self, end: dict[str, Any]) -> ReaderStart:
        """Begin the pass that follows the end of another one."""
        # The state of a mere iterator is of no use to the iterator of the next pass.
        end = {name: state for name, state in end.items() if name == "dataset" or len(end) == 1}
        is_own_iterator = has_state(self._dataset)
        before = attributes(self._dataset)
        try:
            self._open(end if "dataset" in end or is_own_iterator else None, loads_first=True)
            self._pending = self._fetch(0)
        except Exception:  # noqa: BLE001 - no state of a stream's may end a run
            self._pending = (_END, True, 0)
            set_attributes(self._dataset, before)
        if self._pending[0] is _END:  # the stream is still at its end: iter() begins the next pass
            self._pending = None
            self._open(None)
        return ReaderStart(self._begin())

    def _ways_to_open(self, position: WorkerPosition) -> list[tuple[dict[str, Any], bool]]:
        """Return the states that lead to a position, and whether to load them before ``iter()``."""
        if position.state is not None:
            return self._ways(position.state, position.origin)
        return [] if position.done else self._ways_to_begin(position)

    def _ways_to_begin(self, position: WorkerPosition) -> list[tuple[dict[str, Any], bool]]:
        """Return the states that lead to the beginning of the pass."""
        start, origin = position.start, position.origin
        if start is None:
            return []
        ways = self._ways(start, origin)
        if origin is None:
            return ways
        before = (
            ({"dataset": origin}, False) if "dataset" in start else ({"iterator": origin}, True)
        )
        return [before, *ways]

    def _ways(self, state: dict[str, Any], origin: Any) -> list[tuple[dict[str, Any], bool]]:
        if "dataset" not in state and has_state(self._dataset):  # its own iterator
            return [(state, False), (state, True)]
        if origin is not None and "iterator" in state:
            return [({**state, "dataset": origin}, False), (state, False)]
        return [(state, False)]

    def _start_from_state(
        self, position: WorkerPosition, state: dict[str, Any], *, loads_first: bool
    ) -> ReaderStart:
        self._open(state, loads_first=loads_first)
        self._keep_beginning_of(position)
        if position.state_is_after:
            self._done = position.done
            return ReaderStart(position, used_state=True)
        if not position.done:
            self._pending = self._fetch(0)
            if self._pending[0] is _END:
                self._pending = None
                if position.ended:
                    return ReaderStart(position, used_state=True)
                # It may be the end of the pass before.
                raise _OtherBatchError("no batch is left after the loaded state")
            return ReaderStart(self._begin(), used_state=True)
        self._done = position.done - position.checked
        if not self._reads_last_batches_of(position):
            raise _OtherBatchError(
                "the batches after the loaded state are others than before the restart"
            )
        return ReaderStart(position, used_state=True, matches=True)

    def _read_again(
        self, position: WorkerPosition, error: str | None, before: dict[str, Any] | None
    ) -> ReaderStart:
        """Go to a position by reading from the beginning, with the state of the beginning first."""
        # At the beginning, the ways to it have been tried by `start`.
        ways = [*(self._ways_to_begin(position) if position.done else ()), (None, False)]
        matches = None
        for state, loads_first in ways:
            try:
                self._open(state, loads_first=loads_first)
                self._keep_beginning_of(position)
                matches = self._skip_to(position)
            except Exception as caught:
                if state is None:
                    raise
                error = error or f"{type(caught).__name__}: {caught}"
                matches = False
            if matches is not False:
                break
            if state is not None:
                set_attributes(self._dataset, before)
        return ReaderStart(
            self._position(position),
            read_again=position.done,
            state_error=error if position.done else None,
            matches=None if position.ended else matches,
        )

    def _skip_to(self, position: WorkerPosition) -> bool | None:
        """Read up to a position; return whether its last batches are the same, or None."""
        compared = 0 if position.fingerprint is None else min(position.checked, position.done)
        for number in range(position.done - compared):
            with _seeded(self._seed_of(number)):
                collections.deque(self._take(self._batch_size or 1), maxlen=0)
        self._done = position.done - compared
        self._state = self._ask_state()
        return self._reads_last_batches_of(position) if compared else None

    def _reads_last_batches_of(self, position: WorkerPosition) -> bool:
        """Read the last batches before a position, and return whether they are the same."""
        while self._done < position.done:
            before = self._state
            batch, _, rows = self._fetch(self._done)
            if batch is _END:
                return False
            self._done += 1
            self._recent.append(_Read(before, fingerprint(batch), rows))
            self._state = self._ask_state()
        return self._checksum() == position.fingerprint

    def _remember(self, read: _Read) -> None:
        """Remember the last batches, at least eight rows of them."""
        self._recent.append(read)
        rows = sum(each.rows for each in self._recent)
        while rows - self._recent[0].rows >= _CHECKED_ROWS:
            rows -= self._recent.popleft().rows

    def _checksum(self) -> int:
        """Return the checksum of the remembered batches."""
        if len(self._recent) == 1:
            return self._recent[0].fingerprint
        return fingerprint([each.fingerprint for each in self._recent])

    def _keep_beginning_of(self, position: WorkerPosition) -> None:
        if position.start is not None:
            self._start, self._origin = position.start, position.origin

    def _begin(self) -> WorkerPosition:
        return WorkerPosition(start=self._start, origin=self._origin)

    def _position(self, position: WorkerPosition) -> WorkerPosition:
        """Return a position to save before the first batch: that of the start, or the given one."""
        if position.done:
            return position
        return self._begin()

    def _open(self, state: dict[str, Any] | None, *, loads_first: bool = False) -> None:
        """Begin to iterate over the stream, with a state of its own or without.

        With ``loads_first`` the state of an iterator is loaded into the dataset before ``iter()``.
        """
        state = state or {}
        with _seeded(self._seed_of(-1)):
            self._loaded.take_back(self._dataset)
            if "dataset" in state:
                self._loaded.load(self._dataset, state["dataset"])
            if "iterator" in state and loads_first:
                self._loaded.load(self._dataset, state["iterator"])
            before = state_of(self._dataset)
            self._rows = iter(self._dataset)
            if "iterator" in state and not loads_first:
                self._rows.load_state_dict(from_json(state["iterator"]))
        self._owners = {}
        if self._rows is not self._dataset and has_state(self._dataset):
            self._owners["dataset"] = self._dataset
        if has_state(self._rows):
            self._owners["iterator"] = self._rows
        self._done, self._pending = 0, None
        self._recent.clear()
        self._state = self._start = self._ask_state()
        owner = "dataset" if "dataset" in self._owners else "iterator"
        after = None if self._start is None else self._start[owner]
        is_asked = has_state(self._dataset) and after is not None
        self._origin = before if is_asked and before != after else None

    def _ask_state(self) -> dict[str, Any] | None:
        """Return the stream's own state, or None if it has none that can be saved."""
        if not self._owners:
            return None
        try:
            return {name: to_json(owner.state_dict()) for name, owner in self._owners.items()}
        except Exception:  # noqa: BLE001 - no state of a stream's may end a run
            self._owners = {}
            return None

    def _fetch(self, number: int) -> tuple[Any, bool, int]:
        """Return a batch or _END, whether the stream has ended, and the number of rows."""
        with _seeded(self._seed_of(number)):
            if self._batch_size is None:
                row = next(self._rows, _END)
                return (row, True, 0) if row is _END else (self._collate(row), False, 1)
            rows = list(self._take(self._batch_size))
            is_short = len(rows) < self._batch_size
            if not rows or (is_short and self._drop_last):
                return _END, True, 0
            return self._collate(rows), is_short, len(rows)

    def _take(self, count: int) -> Iterator[Any]:
        """Yield some rows, without ``iter()``: it would begin a stream anew."""
        for _ in range(count):
            row = next(self._rows, _END)
            if row is _END:
                return
            yield row


@dataclass(frozen=True)
class _Read:
    """A batch that was read: the stream's own state before it, its checksum, and its rows."""

    state: dict[str, Any] | None
    fingerprint: int
    rows: int


class _OtherBatchError(Exception):
    """Raised if a loaded state of a stream's does not lead to the same batch."""


def _seeded(seed: int) -> AbstractContextManager[None]:
    """Seed the generators: in a worker permanently, in the main process for a block."""
    if get_worker_info() is None:
        return TemporarySeed(seed)
    seed_generators(seed)
    return nullcontext()
