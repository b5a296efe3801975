"""What it costs that a run can be killed anywhere and goes on bit for bit: CPU time of a step.

    OMP_NUM_THREADS=1 python benchmarks/core_exactness.py [--ranks 2] [--rounds 11]

The same training with everything on (position, random state of each rank, votes, checks, signals)
and no checkpoint due, with one every so many steps, and without a checkpointer. MSE, AdamW,
dropout, shuffled rows, one thread. Contenders take turns, round by round; a ratio is the median
over the rounds, of the step's CPU time over that of the run without a checkpointer beside it.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from brain_ckpt import Checkpointer
from brain_core import Brain, EpochCounter

STEPS, EVERY = 600, 100
SIZES = {"Linear(32, 32)": 32, "Linear(512, 512)": 512}


class Regression(Brain):
    def compute_forward(self, batch: Any, stage: Any) -> Any:
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions: Any, batch: Any, stage: Any) -> Any:
        return torch.nn.functional.mse_loss(predictions, batch[0])


def train(folder: str | None, size: int, *, asynchronous: bool = False, **run_opts: Any) -> float:
    """Train and return the CPU seconds of the training alone, those of a writing thread too."""
    torch.manual_seed(0)
    rows = torch.utils.data.TensorDataset(torch.randn(STEPS * 16, size))
    model = torch.nn.Sequential(torch.nn.Linear(size, size), torch.nn.Dropout(0.1))
    checkpointer = None
    if folder is not None:
        path = Path(folder) / str(time.monotonic_ns())
        checkpointer = Checkpointer(path, {"model": model}, asynchronous=asynchronous)
    brain = Regression(
        {"model": model},
        lambda p: torch.optim.AdamW(p, lr=0.01),
        run_opts={"device": "cpu", "noprogressbar": True, **run_opts},
        checkpointer=checkpointer,
    )
    started = time.process_time()
    brain.fit(EpochCounter(1), rows, train_loader_kwargs={"batch_size": 16, "shuffle": True})
    return time.process_time() - started


def measure(folder: str, rank: int, ranks: int, rounds: int) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    if ranks > 1:
        store = torch.distributed.FileStore(f"{folder}/store", ranks)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    for name, size in SIZES.items():
        entrants = {
            "no checkpointer": lambda size=size: train(None, size),
            "all on, none due": lambda size=size: train(folder, size, ckpt_interval_steps=10**9),
            "all on, by the clock": lambda size=size: train(
                folder, size, ckpt_interval_minutes=1e9
            ),
            f"one every {EVERY} steps": lambda size=size: train(
                folder, size, ckpt_interval_steps=EVERY
            ),
            f"one every {EVERY}, asynchronous": lambda size=size: train(
                folder, size, asynchronous=True, ckpt_interval_steps=EVERY
            ),
        }
        seconds: dict[str, list[float]] = {entrant: [] for entrant in entrants}
        for round_ in range(rounds + 1):
            # Turned around in every other round, so that a drift of the machine cancels out.
            for entrant in list(entrants)[:: 1 if round_ % 2 else -1]:
                taken = entrants[entrant]() * ranks / STEPS
                if round_:
                    seconds[entrant].append(taken)
        if rank == 0:
            show(f"{name}, {ranks} rank{'s' * (ranks > 1)}", seconds)


def show(title: str, seconds: dict[str, list[float]]) -> None:
    print(title)
    base = seconds["no checkpointer"]
    for entrant, taken in seconds.items():
        ratios = [a / b for a, b in zip(taken, base, strict=True)]
        print(
            f"  {entrant:32} {1e6 * statistics.median(taken):7.0f} us a step   x "
            f"{statistics.median(ratios):.4f} ({min(ratios):.3f} to {max(ratios):.3f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=1, help="gloo ranks on this machine")
    parser.add_argument("--rounds", type=int, default=11, help="one more is done to warm up")
    given = parser.parse_args()
    ranks, rounds = given.ranks, given.rounds
    with tempfile.TemporaryDirectory() as folder:
        if ranks == 1:
            measure(folder, 0, 1, rounds)
            return
        os.environ["OMP_NUM_THREADS"] = "1"
        context = multiprocessing.get_context("spawn")
        processes = [
            context.Process(target=measure, args=(folder, rank, ranks, rounds))
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()


if __name__ == "__main__":
    main()
