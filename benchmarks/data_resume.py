"""Resume at batch 100,000 of 125,000 (1,000,000 rows, shuffled): seconds to the first batch.

    python benchmarks/data_resume.py

Each contender makes its loader, seeks the position and takes one batch. "iterate the sampler" is
what SpeechBrain does: it takes every batch before the position from the sampler. torchdata is
measured, too, if it is installed.
"""

from __future__ import annotations

import gc
import statistics
import time
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from _timing import print_seconds
from _verdict import report
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from brain_data import ReproducibleRandomSampler, SaveableDataLoader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROWS, BATCH_SIZE, POSITION = 1_000_000, 8, 100_000
ROUNDS = 15


class Rows:
    """A dataset of a million rows that are their own numbers."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return ROWS

    def __getitem__(self, row: int) -> int:
        """Return the row's number."""
        return row


class SlicedBatches:
    """The batches of a permutation from a position on."""

    def __init__(self, order: torch.Tensor, position: int) -> None:
        self.order = order
        self.position = position

    def __iter__(self) -> Iterator[list[int]]:
        """Slice one batch after the other."""
        for low in range(self.position * BATCH_SIZE, ROWS, BATCH_SIZE):
            yield self.order[low : low + BATCH_SIZE].tolist()


def order() -> torch.Tensor:
    """Return the permutation of all contenders."""
    return torch.randperm(ROWS, generator=torch.Generator().manual_seed(563375142))


def permute_and_slice(workers: int) -> torch.Tensor:
    """Resume with as little code as possible: the lower bound."""
    loader = DataLoader(Rows(), batch_sampler=SlicedBatches(order(), POSITION), num_workers=workers)
    return next(iter(loader))


def first_batch(workers: int, state: dict[str, Any] | None) -> torch.Tensor:
    """Seek the position of a state, or start at the beginning."""
    loader = SaveableDataLoader(
        Rows(), BATCH_SIZE, sampler=ReproducibleRandomSampler(Rows()), num_workers=workers
    )
    if state is not None:
        loader.load_state_dict(state)
    return next(iter(loader))


class SkippingBatches:
    """A batch sampler that is iterated up to a position, as in SpeechBrain."""

    def __iter__(self) -> Iterator[list[int]]:
        """Take every batch before the position and drop it."""
        generator = torch.Generator().manual_seed(563375142)
        batches = BatchSampler(
            RandomSampler(range(ROWS), generator=generator), BATCH_SIZE, drop_last=False
        )
        return islice(batches, POSITION, None)


def iterate_the_sampler(workers: int) -> torch.Tensor:
    """Resume as SpeechBrain does."""
    return next(iter(DataLoader(Rows(), batch_sampler=SkippingBatches(), num_workers=workers)))


def saved_state() -> dict[str, Any]:
    """Return the state of a loader at the position, without seeking it."""
    loader = SaveableDataLoader(Rows(), BATCH_SIZE, sampler=ReproducibleRandomSampler(Rows()))
    return {**loader.state_dict(), "position": POSITION}


def torchdata_contender(workers: int) -> Callable[[], object] | None:
    """Return a function that resumes with torchdata, from its own state at the position."""
    try:
        from torchdata.stateful_dataloader import StatefulDataLoader
    except ImportError:
        print("torchdata is not installed: skipped")
        return None

    def make() -> Any:
        generator = torch.Generator().manual_seed(563375142)
        sampler = RandomSampler(range(ROWS), generator=generator)
        return StatefulDataLoader(
            Rows(),
            BATCH_SIZE,
            sampler=sampler,
            num_workers=workers,
            snapshot_every_n_steps=POSITION,
        )

    loader = make()
    for _ in islice(loader, POSITION):
        pass
    state = loader.state_dict()

    def resume() -> object:
        loader = make()
        loader.load_state_dict(state)
        return next(iter(loader))

    return resume


def measure(workers: int) -> None:
    """Print a table for one number of workers."""
    state = saved_state()
    contenders: dict[str, Callable[[], object]] = {
        "permute and slice": lambda: permute_and_slice(workers),
        "brain_data, at the position": lambda: first_batch(workers, state),
        "brain_data, from the beginning": lambda: first_batch(workers, None),
        "iterate the sampler": lambda: iterate_the_sampler(workers),
    }
    torchdata = torchdata_contender(workers)
    if torchdata is not None:
        contenders["torchdata StatefulDataLoader"] = torchdata
    first = permute_and_slice(workers)
    assert torch.equal(first, first_batch(workers, state))
    assert torch.equal(first, iterate_the_sampler(workers))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, call in contenders.items():
            gc.collect()
            start = time.perf_counter()
            batch = call()
            seconds[name].append(time.perf_counter() - start)
            del batch
    print_seconds(f"{workers} workers, to the first batch", seconds, "permute and slice")
    ours, base = (seconds[name] for name in ("brain_data, at the position", "permute and slice"))
    report(
        f"first batch at batch 100,000 of 125,000, {workers} workers",
        statistics.median(ours),
        "s",
        1.1,
        "permute and slice",
        statistics.median(base),
    )


def main() -> None:
    """Measure with and without workers."""
    torch.set_num_threads(1)
    for workers in (0, 2):
        measure(workers)


if __name__ == "__main__":
    main()
