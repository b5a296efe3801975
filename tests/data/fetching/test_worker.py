"""SaveableDataLoader with worker processes: changed settings on resuming, and dead workers."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import signal
import time
from itertools import islice
from typing import Any

import pytest
import torch
from data_helpers import USES_WORKERS, keep
from torch.utils.data import BatchSampler, get_worker_info

from brain_data import (
    DistributedSamplerWrapper,
    ReproducibleRandomSampler,
    SaveableDataLoader,
)
from brain_data.fetching.worker import WorkerInit

pytestmark = USES_WORKERS


class Rows:
    """Rows 0 to 39; one of them kills its worker, hangs or fails."""

    def __init__(self, bad: int | None = None, how: str = "kill") -> None:
        self.bad = bad
        self.how = how
        self.shard = None

    def __len__(self) -> int:
        return 40

    def __getitem__(self, row: int) -> int:
        if row != self.bad:
            return row
        if self.how == "hang":
            time.sleep(3)
            return row
        if self.how == "fail":
            raise FileNotFoundError("no such file: 23.wav")
        os.kill(os.getpid(), signal.SIGKILL)
        return row


class Bulk(Rows):
    """Rows fetched by a list."""

    def __getitems__(self, rows: list[int]) -> list[int]:
        return [self[row] for row in rows]


class Pipelined(Rows):
    """Checks the shard that `set_shard` assigned to the worker."""

    def __getitem__(self, row: int) -> int:
        info = get_worker_info()
        assert info is None or info.dataset.shard == info.id
        return row


def set_shard(worker: int) -> None:
    """A worker_init_fn, as torch's documentation writes it."""
    get_worker_info().dataset.shard = worker


def loader_of(dataset: Any, **kwargs: Any) -> Any:
    sampler = ReproducibleRandomSampler(range(40))
    return SaveableDataLoader(dataset, batch_size=3, sampler=sampler, collate_fn=keep, **kwargs)


def test_workers_prefetch_and_persistence_may_differ_on_resume() -> None:
    """The position does not depend on them, over several stops in one epoch."""
    whole = list(loader_of(Rows()))
    state, seen = None, []
    for kwargs in (
        {"num_workers": 2, "prefetch_factor": 3},
        {"num_workers": 1, "persistent_workers": True},
        {"num_workers": 3},
        {},
    ):
        loader = loader_of(Rows(), **kwargs)
        if state is not None:
            loader.load_state_dict(state)
        iterator = iter(loader)
        seen += [next(iterator) for _ in range(3)]
        state = loader.state_dict()
    assert seen + list(iterator) == whole


def test_random_stops_with_random_workers_and_ranks_take_each_row_once() -> None:
    """Runs are stopped and resumed with 0 to 3 workers, on 1 or 2 ranks, in any epoch."""
    draw = random.Random(11)
    for _ in range(12):
        rows, size, epoch = draw.randint(20, 60), draw.randint(2, 5), draw.randrange(4)
        rows += rows % size == 1  # two ranks could not share a last row
        state, taken = None, []
        while state is None or not state["finished"]:
            world_size = draw.choice((1, 2)) if state is None or not state["position"] % 2 else 1
            steps = draw.randint(1, 8) * 2 // world_size
            for rank in range(world_size):
                batches = BatchSampler(
                    ReproducibleRandomSampler(range(rows)), size, drop_last=False
                )
                loader = SaveableDataLoader(
                    range(rows),
                    batch_sampler=DistributedSamplerWrapper(batches, world_size, rank),
                    collate_fn=keep,
                    num_workers=draw.randint(0, 3),
                )
                loader.set_epoch(epoch)
                if state is not None:
                    loader.load_state_dict(state)
                for batch in islice(loader, steps):
                    taken += batch
                last = loader.state_dict()
            state = last
        assert sorted(taken) == list(range(rows))


def test_persistent_workers_serve_all_epochs_and_a_loaded_position() -> None:
    """The same processes are used in each pass."""
    loader = loader_of(Rows(), num_workers=1, persistent_workers=True)
    plain = loader_of(Rows())
    for epoch in range(3):
        loader.set_epoch(epoch)
        plain.set_epoch(epoch)
        iterator = iter(loader)
        head = [next(iterator) for _ in range(epoch)]
        state = loader.state_dict()
        loader.load_state_dict(state)
        assert head + list(loader) == list(plain)


def test_deleting_a_loader_ends_its_persistent_workers_immediately() -> None:
    """No garbage collection is needed."""
    before = set(multiprocessing.active_children())
    loader = loader_of(Rows(), num_workers=1, persistent_workers=True)
    list(loader)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 1
    gc.disable()
    try:
        del loader
        assert not any(worker.is_alive() for worker in workers)
    finally:
        gc.enable()


def test_the_error_of_a_dead_worker_names_its_row() -> None:
    """torch names its pid only."""
    with pytest.raises(
        RuntimeError, match=r"worker pid \d+ was on row 23 of batch \d+.*num_workers=0"
    ):
        list(loader_of(Rows(bad=23), num_workers=2))


def test_the_error_of_a_worker_that_dies_in_getitems_names_all_rows() -> None:
    """Only the dataset could know which of them."""
    with pytest.raises(RuntimeError, match=r"was on all rows, \[.*23.*\], of batch"):
        list(loader_of(Bulk(bad=23), num_workers=1))


def test_the_error_of_a_worker_that_hangs_names_its_row() -> None:
    """The loader has a timeout."""
    with pytest.raises(RuntimeError, match=r"timed out after 1.* was on row 23 of batch"):
        list(loader_of(Rows(bad=23, how="hang"), num_workers=1, timeout=1))


def test_an_error_in_a_worker_keeps_its_type_and_names_the_row() -> None:
    """torch forwards the worker's traceback, which includes the note."""
    with pytest.raises(FileNotFoundError, match=r"23\.wav") as caught:
        list(loader_of(Rows(bad=23, how="fail"), num_workers=1))
    if hasattr(caught.value, "__notes__") or "add_note" in dir(BaseException):
        assert "raised by row 23 of batch" in str(caught.value)


def test_a_worker_init_function_reads_and_sets_the_users_dataset() -> None:
    """The proxy forwards attributes."""
    assert len(list(loader_of(Pipelined(), num_workers=2, worker_init_fn=set_shard))) == 14


def test_spawned_workers_work_too() -> None:
    """All that is sent to them can be pickled."""
    loader = SaveableDataLoader(
        torch.arange(6), batch_size=2, num_workers=1, multiprocessing_context="spawn"
    )
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3], [4, 5]]


def test_a_worker_ends_if_its_main_process_was_killed_before_it_started() -> None:
    """torch's watchdog would take the new parent for its own, and wait forever."""
    reading, writing = os.pipe()
    if os.fork() == 0:  # the main process
        start = WorkerInit(lambda _: os.write(writing, b"began"), is_child=True)
        main = os.getpid()
        if os.fork() == 0:  # the worker
            while os.getppid() == main:
                time.sleep(0.001)
            start(0)
        os._exit(0)
    os.close(writing)
    assert os.read(reading, 16) == b""
    os.close(reading)
    os.wait()
