"""Streams as users and other libraries write them, and passes over them that are resumed."""

from __future__ import annotations

import multiprocessing
import random
from typing import Any

import torch
from data_helpers import passes_with_states
from torch.utils.data import IterableDataset, get_worker_info

from brain_data import SaveableDataLoader

ROWS = 46
BATCH = 4
PASSES = 3


def shard() -> list[int]:
    """Return the rows of this worker."""
    info = get_worker_info()
    worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
    return list(range(worker, ROWS, workers))


class Plain(IterableDataset[int]):
    """Has no state, and shuffles by the global generator."""

    def __iter__(self) -> Any:
        rows = shard()
        random.shuffle(rows)
        yield from rows


class CountsPasses(IterableDataset[int]):
    """Has a state, and shuffles by the number of its passes."""

    def __init__(self) -> None:
        self.done = self.passes = 0

    def __iter__(self) -> Any:
        rows = shard()
        random.Random(self.passes).shuffle(rows)
        while self.done < len(rows):
            self.done += 1
            yield rows[self.done - 1]
        self.done, self.passes = 0, self.passes + 1

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done, "passes": self.passes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done, self.passes = state["done"], state["passes"]


class KeepsLoadedState(IterableDataset[int]):
    """Begins each pass from the state that was loaded, as Hugging Face's datasets 5 does."""

    def __init__(self) -> None:
        self.done = 0
        self.loaded: dict[str, Any] | None = None

    def __iter__(self) -> Any:
        self.done = self.loaded["done"] if self.loaded else 0
        for row in shard()[self.done :]:
            self.done += 1
            yield row

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loaded = state


class IteratesWithState:
    """The methods of an iterator over rows that has a state."""

    rows: list[int]
    done: int

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> int:
        if self.done >= len(self.rows):
            raise StopIteration
        self.done += 1
        return self.rows[self.done - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state["done"]


class OwnIterator(IteratesWithState, IterableDataset[int]):
    """Is its own iterator and begins anew in ``__iter__``; its state is loaded after that."""

    def __iter__(self) -> Any:
        self.rows, self.done = shard(), 0
        return self


class OwnIteratorLoadedFirst(OwnIterator):
    """Is its own iterator; its state is loaded before ``__iter__``."""

    def __init__(self) -> None:
        self.done, self.loaded = 0, 0

    def __iter__(self) -> Any:
        self.rows, self.done, self.loaded = shard(), self.loaded, 0
        return self

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loaded = state["done"]


class OwnIteratorWithoutState(IterableDataset[int]):
    """Is its own iterator, and has no state."""

    def __iter__(self) -> Any:
        self.rows = shard()
        return self

    def __next__(self) -> int:
        if not self.rows:
            raise StopIteration
        return self.rows.pop()


class StatefulIterator(IteratesWithState):
    """Iterates over rows, with a state."""

    def __init__(self, rows: list[int]) -> None:
        self.rows, self.done = rows, 0


class IteratorHasState(IterableDataset[int]):
    """Returns iterators that have a state."""

    def __iter__(self) -> Any:
        return StatefulIterator(shard())


class BothHaveState(IterableDataset[int]):
    """Counts its passes, and returns iterators that have a state of their own."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Any:
        self.passes += 1
        rows = shard()
        random.Random(self.passes).shuffle(rows)
        return StatefulIterator(rows)

    def state_dict(self) -> dict[str, Any]:
        return {"passes": self.passes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.passes = state["passes"]


class BufferNotSaved(CountsPasses):
    """Shuffles in a buffer that its state leaves out, as Hugging Face's streams do."""

    def __iter__(self) -> Any:
        draws = random.Random(self.passes)
        buffer: list[int] = []
        for row in super().__iter__():
            buffer.append(row)
            if len(buffer) > 8:
                yield buffer.pop(draws.randrange(len(buffer)))
        yield from buffer


class StateOfOtherTypes(CountsPasses):
    """Its state holds what JSON does not."""

    def state_dict(self) -> dict[str, Any]:
        return {"done": torch.tensor(self.done), 1: (self.passes, {3})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = int(state["done"])
        self.passes, remaining = state[1]
        assert remaining == {3}


class StateCannotBeSaved(Plain):
    """Its state can neither be pickled nor copied."""

    def state_dict(self) -> dict[str, Any]:
        return {"function": lambda: 0, "generator": (row for row in ())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError


class StateRaises(Plain):
    """Its state_dict raises an error after some rows, and its load_state_dict always."""

    def __init__(self) -> None:
        self.asked = 0

    def state_dict(self) -> dict[str, Any]:
        self.asked += 1
        if self.asked > 2:
            raise RuntimeError("no state any more")
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise IndexError("list index out of range")


class OtherSignature(Plain):
    """Its state_dict has arguments that nobody knows."""

    def state_dict(self, rows: int, *, last: bool) -> dict[str, Any]:
        raise AssertionError

    def load_state_dict(self, state: dict[str, Any], rows: int) -> None:
        raise AssertionError


class OneWorkerIsEmpty(CountsPasses):
    """Gives the first worker no row."""

    def __iter__(self) -> Any:
        info = get_worker_info()
        if info is None or info.id == 1:
            yield from super().__iter__()


class CountsSamples(IterableDataset[int]):
    """Is told how many samples were yielded, as MosaicML's StreamingDataset is.

    Like that one, it counts its passes in memory that its workers share with the main process.
    """

    def __init__(self) -> None:
        self.next_pass = multiprocessing.RawArray("q", 8)  # of each worker
        self.loaded = (0, 0)

    def __iter__(self) -> Any:
        begun, first = self.loaded
        info = get_worker_info()
        worker = 0 if info is None else info.id
        passes = max(begun, self.next_pass[worker])
        self.next_pass[worker] = passes + 1
        rows = list(range(ROWS))
        random.Random(passes).shuffle(rows)
        rows = rows[first if begun == passes else 0 :]
        # Workers take turns with whole batches, so that a pass may go on with any of them.
        batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        for batch in batches if info is None else batches[info.id :: info.num_workers]:
            yield from batch

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        begun, first = self.loaded
        passes = self.next_pass[0] - 1
        done = num_samples if from_beginning or begun != passes else first + num_samples
        return {"epoch": passes, "sample_in_epoch": done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loaded = state["epoch"], state["sample_in_epoch"]


KINDS: tuple[Any, ...] = (
    Plain,
    CountsPasses,
    KeepsLoadedState,
    OwnIterator,
    OwnIteratorLoadedFirst,
    OwnIteratorWithoutState,
    IteratorHasState,
    BothHaveState,
    BufferNotSaved,
    StateOfOtherTypes,
    StateCannotBeSaved,
    StateRaises,
    OtherSignature,
)


def make_loader(kind: Any, workers: int, *, persistent: bool, **kwargs: Any) -> SaveableDataLoader:
    return SaveableDataLoader(
        kind(),
        num_workers=workers,
        persistent_workers=persistent,
        **{"batch_size": BATCH, **kwargs},
    )


def numbers(batch: Any) -> list[int]:
    """Return the numbers of a batch as a list, also if they are in a dict."""
    value = next(iter(batch.values())) if isinstance(batch, dict) else batch
    return [int(number) for number in value]


def passes_of(make: Any) -> tuple[list[list[Any]], dict[Any, Any]]:
    """Return batches and states of a loop over a new loader."""
    return passes_with_states(make(), PASSES, numbers)


def places(passes: list[list[Any]]) -> list[Any]:
    """Return where runs are killed: in a pass, behind its last batch, and behind its end."""
    first, second = len(passes[0]), len(passes[1])
    return [
        *((0, None, False), (0, 0, False), (0, 3, False), (0, first, False), (0, first, True)),
        *((1, 0, False), (1, 2, False), (1, second, False), (1, second, True)),
    ]


def resumed(make: Any, state: Any, place: Any) -> list[list[Any]]:
    """Return the batches that are left to a new loader, pass by pass."""
    loader = make()
    loader.load_state_dict(state)
    remaining = PASSES - place[0] - place[2]
    return [[numbers(batch) for batch in loader] for _ in range(remaining)]


def expected(passes: list[list[Any]], place: Any) -> list[list[Any]]:
    """Return the batches that should be left."""
    number, done, ended = place
    if ended:
        return passes[number + 1 :]
    return [passes[number][done or 0 :], *passes[number + 1 :]]


def assert_resumes_everywhere(make: Any) -> int:
    """Kill and resume at all places; return the number of batches that were compared."""
    passes, states = passes_of(make)
    compared = 0
    for place in places(passes):
        left = expected(passes, place)
        assert resumed(make, states[place], place) == left, place
        compared += sum(map(len, left))
    return compared
