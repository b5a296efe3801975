"""Resume at batch 100,000 of 125,000 (1,000,000 rows, shuffled): seconds to the first batch.

python benchmarks/data_resume.py         (with torchdata installed it is measured too)

Each contender makes its loader, goes to the position and takes one batch. "iterate the sampler" is
what SpeechBrain does: it asks the sampler for every batch before the position.
"""

from __future__ import annotations

import gc
import statistics
import time
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from brain_data import ReproducibleRandomSampler, SaveableDataLoader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROWS, BATCH_SIZE, POSITION = 1_000_000, 8, 100_000
ROUNDS = 15


class Rows:
    """A million rows that cost nothing."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return ROWS

    def __getitem__(self, row: int) -> int:
        """Return the row's number."""
        return row


class Rest:
    """The batches of a permutation from a position on, sliced one by one."""

    def __init__(self, order: torch.Tensor, position: int) -> None:
        self.order = order
        self.position = position

    def __iter__(self) -> Iterator[list[int]]:
        """Slice batch after batch."""
        for low in range(self.position * BATCH_SIZE, ROWS, BATCH_SIZE):
            yield self.order[low : low + BATCH_SIZE].tolist()


def order() -> torch.Tensor:
    """Return the permutation that everybody makes."""
    return torch.randperm(ROWS, generator=torch.Generator().manual_seed(563375142))


def permute_and_slice(workers: int) -> torch.Tensor:
    """Resume as one would write it by hand: the floor."""
    loader = DataLoader(Rows(), batch_sampler=Rest(order(), POSITION), num_workers=workers)
    return next(iter(loader))


def ours(workers: int, state: dict[str, Any] | None) -> torch.Tensor:
    """Seek by index, or start afresh."""
    loader = SaveableDataLoader(
        Rows(), BATCH_SIZE, sampler=ReproducibleRandomSampler(Rows()), num_workers=workers
    )
    if state is not None:
        loader.load_state_dict(state)
    return next(iter(loader))


class Skipping:
    """A batch sampler that is iterated up to a position, as SpeechBrain does it."""

    def __iter__(self) -> Iterator[list[int]]:
        """Ask for every batch before the position, then go on."""
        generator = torch.Generator().manual_seed(563375142)
        batches = BatchSampler(
            RandomSampler(range(ROWS), generator=generator), BATCH_SIZE, drop_last=False
        )
        return islice(batches, POSITION, None)


def iterate_the_sampler(workers: int) -> torch.Tensor:
    """Resume as SpeechBrain does."""
    return next(iter(DataLoader(Rows(), batch_sampler=Skipping(), num_workers=workers)))


def saved_state() -> dict[str, Any]:
    """Return our state at the position, without going there."""
    loader = SaveableDataLoader(Rows(), BATCH_SIZE, sampler=ReproducibleRandomSampler(Rows()))
    return {**loader.state_dict(), "position": POSITION}


def torchdata_contender(workers: int) -> Callable[[], object] | None:
    """Return how torchdata resumes, from a state that it saved at the position."""
    try:
        from torchdata.stateful_dataloader import StatefulDataLoader
    except ImportError:
        print("torchdata is not installed: left out")
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
        "permute and slice (floor)": lambda: permute_and_slice(workers),
        "brain_data, at the position": lambda: ours(workers, state),
        "brain_data, fresh start": lambda: ours(workers, None),
        "iterate the sampler": lambda: iterate_the_sampler(workers),
    }
    theirs = torchdata_contender(workers)
    if theirs is not None:
        contenders["torchdata StatefulDataLoader"] = theirs
    first = permute_and_slice(workers)
    assert torch.equal(first, ours(workers, state))
    assert torch.equal(first, iterate_the_sampler(workers))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, call in contenders.items():
            gc.collect()
            start = time.perf_counter()
            batch = call()
            seconds[name].append(time.perf_counter() - start)
            del batch
    base = seconds["permute and slice (floor)"]
    print(f"\n{workers} workers: seconds to the first batch, median (min to max), x floor")
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(taken, base, strict=True))
        print(
            f"  {name:32} {statistics.median(taken):.4f} "
            f"({min(taken):.4f} to {max(taken):.4f})  x {ratio:.2f}"
        )


def main() -> None:
    """Measure with and without workers."""
    torch.set_num_threads(1)
    for workers in (0, 2):
        measure(workers)


if __name__ == "__main__":
    main()
