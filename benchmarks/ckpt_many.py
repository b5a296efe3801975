"""A save and a listing in a directory of 10, 100 and 2,000 other checkpoints.

    python benchmarks/ckpt_many.py [--quick]

One layer of 4 x 4 is saved, durably. The least wall and CPU time of many saves, in turn in each
directory; and of a first listing in a fresh process, which reads the manifest and the meta of each
checkpoint.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
import time
from pathlib import Path

import torch
from _verdict import report, take_quick

from brain_ckpt import Checkpointer

NUMBERS = (10, 100, 2000)
SETTLE_S = 0.2  # what changed only a moment ago is read again


def fill(folder: Path, others: int) -> Checkpointer:
    """Make a directory of checkpoints, copies of one."""
    first = Checkpointer(folder, {"model": torch.nn.Linear(4, 4)})
    first.save_checkpoint({"loss": 0.5, "step": 3})
    first.close()
    (saved,) = first.list_checkpoints()
    for number in range(1, others):
        name = f"CKPT+2026-01-01+00-00-{number // 100:02d}+{number % 100:02d}"
        shutil.copytree(saved.path, folder / name)
    return Checkpointer(folder, {"model": torch.nn.Linear(4, 4)})


def seconds_of_saves(savers: dict[int, Checkpointer], rounds: int) -> dict[int, tuple[float, ...]]:
    """Return the least wall and CPU time of a save in each directory."""
    taken: dict[int, list[tuple[float, float]]] = {number: [] for number in savers}
    for _ in range(rounds + 2):
        for number, checkpointer in savers.items():
            wall, cpu = time.perf_counter(), time.process_time()
            checkpointer.save_checkpoint({"loss": 0.5, "step": 3})
            taken[number].append((time.perf_counter() - wall, time.process_time() - cpu))
    # The first saves read the other checkpoints.
    return {number: tuple(map(min, zip(*each[2:], strict=True))) for number, each in taken.items()}


def seconds_of_a_listing(folder: Path, rounds: int) -> float:
    """Return the least time of a listing that knows nothing of the directory."""
    least = float("inf")
    for _ in range(rounds):
        reader = Checkpointer(folder, {"model": torch.nn.Linear(4, 4)})
        gc.collect()
        began = time.perf_counter()
        reader.list_checkpoints()
        least = min(least, time.perf_counter() - began)
    return least


def main() -> None:
    """Measure and print."""
    rounds = 10 if take_quick() else 60
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="brain-ckpt-many-") as root:
        folders = {number: Path(root, str(number)) for number in NUMBERS}
        savers = {number: fill(folder, number) for number, folder in folders.items()}
        time.sleep(SETTLE_S)
        listings = {number: seconds_of_a_listing(folders[number], 4) for number in NUMBERS}
        saves = seconds_of_saves(savers, rounds)
        for checkpointer in savers.values():
            checkpointer.close()
    for number in NUMBERS:
        wall, cpu = saves[number]
        print(
            f"beside {number:5,}: a save {1e3 * wall:6.2f} ms, {1e3 * cpu:6.2f} ms of CPU; "
            f"a first listing {1e3 * listings[number]:7.1f} ms"
        )
    few, many = NUMBERS[0], NUMBERS[-1]
    walls = [1e3 * saves[number][0] for number in (many, few)]
    report(f"a small save beside {many:,} checkpoints", walls[0], "ms", 1.1, f"{few}", walls[1])
    report("the CPU time of a small save", 1e3 * saves[few][1], "ms", 3)
    report(f"a first listing of {many:,} checkpoints", listings[many], "s", 0.5)


if __name__ == "__main__":
    main()
