"""Resuming an IterableDataset: by the dataset's own state, or by reading it again."""

from __future__ import annotations

import logging
import multiprocessing
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ._device import copied_ahead
from ._loader_fetch import same
from ._loader_state import FORMAT
from ._seeding import mix, seed_generators, seeded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._loader import SaveableDataLoader

logger = logging.getLogger(__name__)

_WAIT = "wait"
_END = object()


class Stream(IterableDataset[Any]):
    """The user's stream as the inner loader sees it: numbered, collated batches with its state.

    Yields ``(worker, state or None, batch)``. ``places`` maps a worker to ``(batches done, state)``;
    workers up to ``turn`` first yield ``(worker, _WAIT, None)``, so that after a restart the workers
    take their turns where they left off.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[Any], Any],
        batch_size: int | None,
        drop_last: bool,
        seed: int,
        places: dict[int, tuple[int, Any]],
        turn: int,
    ) -> None:
        self.dataset = dataset
        self.collate = collate
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.seed = seed
        self.places = places
        self.turn = turn
        # Shared: workers that persist learn the next pass's epoch from it.
        self.epoch = multiprocessing.RawValue("q", 0)

    def __iter__(self) -> Iterator[tuple[int, Any, Any]]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        places, turn = self.places, self.turn
        self.places, self.turn = {}, 0  # for one pass only
        done, state = places.get(worker, (0, None))
        epoch = int(self.epoch.value)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        if state is not None:
            self.dataset.load_state_dict(state)
        rows = iter(self.dataset)
        if state is None and done:
            size = 1 if self.batch_size is None else self.batch_size
            next(islice(rows, done * size, done * size), None)  # reads and forgets
        if worker < turn:
            yield worker, _WAIT, None
        while True:
            seed = mix(self.seed, epoch, done * workers + worker)
            if info is None:
                with seeded(seed):
                    batch = self._take(rows)
            else:
                seed_generators(seed)
                batch = self._take(rows)
            if batch is _END:
                return
            done += 1
            own = getattr(self.dataset, "state_dict", None)
            yield worker, (done, own() if callable(own) else None), batch

    def _take(self, rows: Iterator[Any]) -> Any:
        if self.batch_size is None:
            row = next(rows, _END)
            return row if row is _END else self.collate(row)
        taken = list(islice(rows, self.batch_size))
        if not taken or (self.drop_last and len(taken) < self.batch_size):
            return _END
        return self.collate(taken)


class StreamPass:
    """One pass over an IterableDataset, and how far each worker's part of it has come."""

    def __init__(self, loader: SaveableDataLoader, resume: dict[str, Any] | None) -> None:
        self.loader = loader
        self.epoch = loader.epoch
        self.handed_out = 0
        self.turn = 0
        self.places: dict[int, tuple[int, Any]] = {}
        if resume is not None:
            self.handed_out = resume["position"]
            self.turn = resume["turn"]
            self.places = {int(k): (v[0], v[1]) for k, v in resume["workers"].items()}
            own = any(state is not None for _, state in self.places.values())
            if own:
                logger.info("the stream goes on at batch %d by its own state", self.handed_out)
            elif self.handed_out:
                logger.warning(
                    "%s has no state_dict: its first %d batches are read again to get to where it "
                    "was", type(loader.dataset).__name__, self.handed_out,
                )  # fmt: skip

    def begin(self) -> Iterator[Any]:
        """Iterate from the position on."""
        loader = self.loader
        inner = loader._inner
        if inner is None or not loader.persistent_workers:
            stream = Stream(
                loader.dataset, loader.collate_fn, loader.batch_size, bool(loader.drop_last),
                loader.seed, self.places, self.turn,
            )  # fmt: skip
            inner = DataLoader(stream, batch_size=None, collate_fn=same, **loader._inherited())
            loader._inner = inner
        assert isinstance(inner.dataset, Stream)
        inner.dataset.epoch.value = self.epoch
        numbered: Iterator[Any] = iter(inner)
        numbered = (item for item in numbered if item[1] != _WAIT)
        if loader.device is not None:
            numbered = copied_ahead(numbered, loader.device)
        return self._hand_out(numbered)

    def _hand_out(self, numbered: Iterator[Any]) -> Iterator[Any]:
        workers = max(1, self.loader.num_workers)
        for worker, place, batch in numbered:
            self.handed_out += 1
            self.turn = (worker + 1) % workers
            self.places[worker] = place
            yield batch

    @staticmethod
    def plain(batches: int) -> dict[str, Any]:
        """Return the state that SpeechBrain's number stands for: one process, replayed."""
        return {"position": batches, "turn": 0, "workers": {"0": [batches, None]}}

    @staticmethod
    def check(loader: SaveableDataLoader, state: dict[str, Any]) -> dict[str, Any]:
        """Return a state that this loader can go on from, or say why it cannot."""
        if "workers" not in state:
            raise ValueError(
                "a state of an IterableDataset is required, got one of a dataset with rows: give "
                "the loader the dataset that it had"
            )
        if state["position"] and state["num_workers"] != loader.num_workers:
            raise ValueError(
                f"num_workers={state['num_workers']!r} is required, as each worker of an "
                f"IterableDataset has a part of its own, got {loader.num_workers!r}: give the "
                "loader as many, or a dataset with rows"
            )
        own = any(place[1] is not None for place in state["workers"].values())
        if own and not hasattr(loader.dataset, "load_state_dict"):
            raise ValueError(
                f"a dataset with load_state_dict is required for its saved state, got "
                f"{type(loader.dataset).__name__!r}: give the loader the dataset that it had"
            )
        return state


def stream_position(loader: SaveableDataLoader) -> dict[str, Any]:
    """Return the state of a loader of an IterableDataset."""
    state: dict[str, Any] = {
        "format": FORMAT,
        "epoch": loader.epoch,
        "num_workers": loader.num_workers,
    }
    current = loader._pass
    if isinstance(loader._resume, dict):
        return {**state, **{k: loader._resume[k] for k in ("position", "turn", "workers")}}
    if not isinstance(current, StreamPass):
        return {**state, "position": 0, "turn": 0, "workers": {}}
    return {
        **state,
        "epoch": current.epoch,
        "position": current.handed_out,
        "turn": current.turn,
        "workers": {str(k): list(v) for k, v in sorted(current.places.items())},
    }
