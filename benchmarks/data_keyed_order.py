"""The first batch of 1e4, 1e7 and 1e10 shuffled rows: seconds and memory, and uniformity.

    python benchmarks/data_keyed_order.py             # randperm up to 1e7 rows
    python benchmarks/data_keyed_order.py --uniform   # 1,000,000 rows over 100 seeds: a minute

Each contender makes its loader, seeks the middle of the epoch and takes one batch of 8 rows, as
after a restart. Memory is the peak of what Python, numpy and torch allocate meanwhile, beyond what
there was before; the least of many runs is the time. Then one rank of 4,096 does the same at every
tenth of ten billion rows. The last table is the cost of a row in a whole pass, without a dataset.
"""

from __future__ import annotations

import argparse
import functools
import math
import threading
import time
import tracemalloc
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _timing import cpu_seconds, print_microseconds
from _verdict import report, take_quick

from brain_data import (
    DistributedSamplerWrapper,
    KeyedRandomSampler,
    ReproducibleRandomSampler,
    SaveableDataLoader,
)
from brain_data.order.keyed import KeyedOrder
from brain_data.order.plan import split_into_batches
from brain_data.order.sharding import ShardedPlan

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH_SIZE, ROUNDS, WORLD_SIZE = 8, 30, 4096
SIZES = (10**4, 10**7, 10**10)
LARGEST_TABLE = 10**7
KINDS = {"keyed": KeyedRandomSampler, "randperm": ReproducibleRandomSampler}


def first_batch(kind: type[Any], rows: int) -> list[int]:
    """Resume in the middle of the epoch and return the next batch."""
    loader = SaveableDataLoader(range(rows), BATCH_SIZE, sampler=kind(range(rows)))
    loader.load_state_dict({**loader.state_dict(), "position": rows // BATCH_SIZE // 2})
    batch: list[int] = next(iter(loader)).tolist()
    return batch


def rank_batch(rank: int, tenth: int, rows: int) -> list[int]:
    """Return the batch of one of 4,096 ranks at a tenth of the epoch."""
    sampler = torch.utils.data.BatchSampler(
        KeyedRandomSampler(range(rows)), BATCH_SIZE, drop_last=False
    )
    loader = SaveableDataLoader(
        range(rows), batch_sampler=DistributedSamplerWrapper(sampler, WORLD_SIZE, rank)
    )
    number = rows // (BATCH_SIZE * WORLD_SIZE) * tenth // 10
    loader.load_state_dict({**loader.state_dict(), "position": number * WORLD_SIZE})
    batch: list[int] = next(iter(loader)).tolist()
    return batch


def peak_bytes(call: Callable[[], object]) -> int:
    """Return the most memory that a call allocates, torch's of large tensors included."""
    before, peak, done = _resident_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, _resident_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    tracemalloc.start()
    call()
    _, traced = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    done.set()
    watcher.join()
    # The process grows by whole arenas: only a table of rows is larger than these.
    return max(traced, peak if peak > 10_000_000 else 0)


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def least_seconds(call: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Return the least time of many calls."""
    least = math.inf
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        least = min(least, time.perf_counter() - start)
    return least


def measure_first_batches(sizes: tuple[int, ...] = SIZES) -> None:
    """Print seconds and bytes of the first batch for each number of rows."""
    print("\nfirst batch after resuming in the middle: least ms, peak kB")
    for rows in sizes:
        for name, kind in KINDS.items():
            if kind is ReproducibleRandomSampler and rows > LARGEST_TABLE:
                print(f"  {rows:.0e} rows  {name:10} not run: {8 * rows / 1e9:.0f} GB")
                continue
            first_batch(kind, rows)
            call = functools.partial(first_batch, kind, rows)
            is_slow = kind is ReproducibleRandomSampler and rows == LARGEST_TABLE
            taken = least_seconds(call, 3 if is_slow else ROUNDS)
            memory = peak_bytes(call)
            print(f"  {rows:.0e} rows  {name:10} {taken * 1e3:8.2f} ms {memory / 1e3:10.0f} kB")
            if rows == SIZES[-1]:
                report("first batch amid 1e10 keyed rows", taken * 1e3, "ms", 10)
                report("… and its memory", memory / 1e6, "MB", 1)


def measure_one_rank() -> None:
    """Print the time to a rank's batch at every tenth of ten billion rows."""
    rows, rank = SIZES[-1], 1234
    calls = [functools.partial(rank_batch, rank, tenth, rows) for tenth in range(10)]
    taken = [least_seconds(call) for call in calls]
    memory = max(peak_bytes(call) for call in calls)
    print(f"\nrank {rank} of {WORLD_SIZE} at every tenth of {rows:.0e} rows: least ms")
    print("  " + " ".join(f"{each * 1e3:.2f}" for each in taken) + f", peak {memory / 1e3:.0f} kB")


def measure_rows() -> None:
    """Print the cost of a batch in a pass, on one rank and on 4,096."""
    rows, batches = LARGEST_TABLE, 2000
    orders = {
        "randperm": ReproducibleRandomSampler(range(rows)).order(),
        "keyed": KeyedOrder(rows, 1, 0),
    }
    contenders = {
        f"{name}, {world_size} ranks": _pass(order, world_size, batches)
        for name, order in orders.items()
        for world_size in (1, 64)
    }
    seconds = cpu_seconds(contenders, rounds=15, calls=1)
    per_batch = {name: [each / batches for each in taken] for name, taken in seconds.items()}
    print_microseconds(
        f"a batch of {BATCH_SIZE} rows in a pass, µs", per_batch, "randperm, 1 ranks"
    )


def _pass(order: Any, world_size: int, batches: int) -> Callable[[], object]:
    shards = ShardedPlan(split_into_batches(order, BATCH_SIZE), world_size)
    return lambda: sum(len(rows) for _, rows in islice(shards.batches(0, 0), batches))


def measure_uniformity(rows: int = 1_000_000, seeds: int = 100, cells: int = 100) -> None:
    """Print chi-squared of rows over places, and of the steps between successive rows."""
    width = rows // cells
    place = np.arange(rows) // width * cells
    kinds: dict[str, Callable[[int], Any]] = {
        "keyed": lambda seed: KeyedOrder(rows, seed, 0)[:],
        "randperm": lambda seed: ReproducibleRandomSampler(range(rows), seed).order(),
    }
    print(f"\n{rows} rows, {seeds} seeds, {cells} x {cells} cells: chi-squared")
    for name, make in kinds.items():
        by_place, by_step = np.zeros(cells * cells), np.zeros(cells)
        for seed in range(seeds):
            order = make(seed)
            by_place += np.bincount(place + order // width, minlength=cells * cells)
            by_step += np.bincount(np.diff(order) % rows // width, minlength=cells)
        for what, counts, freedom in (
            ("row by place", by_place, (cells - 1) ** 2),
            ("step to the next row", by_step, cells - 1),
        ):
            expected = counts.sum() / len(counts)
            statistic = float(((counts - expected) ** 2).sum() / expected)
            deviations = (statistic - freedom) / math.sqrt(2 * freedom)
            print(
                f"  {name:10} {what:22} {statistic:9.1f} "
                f"({freedom} expected, {deviations:+.2f} s.d.)"
            )


def main() -> None:
    """Measure all, on one thread."""
    is_quick = take_quick()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uniform", action="store_true", help="test the uniformity, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if is_quick:
        measure_first_batches(SIZES[-1:])
        return
    measure_first_batches()
    measure_one_rank()
    measure_rows()
    if arguments.uniform:
        measure_uniformity()


if __name__ == "__main__":
    main()
