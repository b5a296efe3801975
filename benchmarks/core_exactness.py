"""CPU time of a step with everything that a killed run needs to continue bit for bit.

    OMP_NUM_THREADS=1 python benchmarks/core_exactness.py [--ranks 2] [--rounds 11]

First, the same training without a checkpointer, and with one that saves nothing yet (position,
random state of each rank, votes, checks, signals). Each runs in its own thread, a few steps in
turn, so that other load on the machine affects all of them. A ratio is the median over the turns
of a turn's CPU time, relative to the adjacent turn without a checkpointer; the ratio of the sums is
printed, too. Second, whole runs one after the other with periodic checkpoints, which a thread may
write. MSE, AdamW, dropout, shuffled rows, one thread of torch.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from _timing import paired_ratio

from brain_ckpt import Checkpointer
from brain_core import Brain, EpochCounter

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS, EVERY = 600, 100
TURNS, WARM_UP_TURNS, STEPS_PER_TURN = 300, 10, 20
SIZES = {"Linear(32, 32)": 32, "Linear(512, 512)": 512}
BASE = "no checkpointer"


class Regression(Brain):
    after_step: Callable[[], None] | None = None

    def compute_forward(self, batch: Any, stage: Any) -> Any:
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions: Any, batch: Any, stage: Any) -> Any:
        return torch.nn.functional.mse_loss(predictions, batch[0])

    def on_fit_batch_end(self, batch: Any, outputs: Any, loss: Any, should_step: bool) -> None:
        if self.after_step is not None:
            self.after_step()


class Turns:
    """Runs trainings in turns, and keeps the CPU seconds of each turn."""

    def __init__(self, names: list[str]) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self._gates = {name: threading.Semaphore(0) for name in names}
        self._next = dict(zip(names, [*names[1:], names[0]], strict=True))
        self._began = 0.0

    def run(self, trainings: dict[str, Callable[[Callable[[], None]], None]]) -> None:
        """Run all trainings; each must call its argument after every step."""
        threads = [
            threading.Thread(target=self._run, args=(name, training))
            for name, training in trainings.items()
        ]
        for thread in threads:
            thread.start()
        self._gates[next(iter(trainings))].release()
        for thread in threads:
            thread.join()

    def _run(self, name: str, training: Callable[[Callable[[], None]], None]) -> None:
        steps = 0

        def after_step() -> None:
            nonlocal steps
            steps += 1
            if steps % STEPS_PER_TURN == 0:
                self.seconds[name].append(time.process_time() - self._began)
                self._gates[self._next[name]].release()
                self._wait(name)

        self._wait(name)
        training(after_step)
        self._gates[self._next[name]].release()

    def _wait(self, name: str) -> None:
        self._gates[name].acquire()
        self._began = time.process_time()


def train(
    folder: str | None,
    size: int,
    steps: int = STEPS,
    after_step: Callable[[], None] | None = None,
    *,
    asynchronous: bool = False,
    **run_opts: Any,
) -> float:
    """Train and return the CPU seconds of `fit`, those of a writing thread included."""
    torch.manual_seed(0)
    rows = torch.utils.data.TensorDataset(torch.randn(steps * 16, size))
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
    brain.after_step = after_step
    started = time.process_time()
    brain.fit(EpochCounter(1), rows, train_loader_kwargs={"batch_size": 16, "shuffle": True})
    return time.process_time() - started


def measure_without_saves(folder: str, size: int) -> dict[str, list[float]]:
    """Return the CPU seconds per step of each turn."""
    steps = (WARM_UP_TURNS + TURNS) * STEPS_PER_TURN
    trainings = {
        BASE: lambda call: train(None, size, steps, call),
        "checkpointer, by steps": lambda call: train(
            folder, size, steps, call, ckpt_interval_steps=10**9
        ),
        "checkpointer, by the clock": lambda call: train(
            folder, size, steps, call, ckpt_interval_minutes=1e9
        ),
    }
    turns = Turns(list(trainings))
    turns.run(trainings)
    return {
        name: [each / STEPS_PER_TURN for each in seconds[WARM_UP_TURNS:]]
        for name, seconds in turns.seconds.items()
    }


def measure_with_saves(folder: str, size: int, rounds: int) -> dict[str, list[float]]:
    """Return the CPU seconds per step of each run."""
    trainings = {
        BASE: lambda: train(None, size),
        f"save every {EVERY} steps": lambda: train(folder, size, ckpt_interval_steps=EVERY),
        f"save every {EVERY}, asynchronous": lambda: train(
            folder, size, asynchronous=True, ckpt_interval_steps=EVERY
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in trainings}
    for round_ in range(rounds + 1):
        # In reverse order in every other round, so that a drift of the machine cancels out.
        for name in list(trainings)[:: 1 if round_ % 2 else -1]:
            taken = trainings[name]() / STEPS
            if round_:
                seconds[name].append(taken)
    return seconds


def measure(folder: str, rank: int, ranks: int, rounds: int) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    if ranks > 1:
        store = torch.distributed.FileStore(f"{folder}/store", ranks)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    for name, size in SIZES.items():
        tables = measure_without_saves(folder, size), measure_with_saves(folder, size, rounds)
        if rank == 0:
            print(f"{name}, {ranks} rank{'s' * (ranks > 1)}")
            for table in tables:
                show(table)


def show(seconds: dict[str, list[float]]) -> None:
    base = seconds[BASE]
    for name, taken in seconds.items():
        ratio, low, high = paired_ratio(taken, base, tail=0.1)
        print(
            f"  {name:32} {1e6 * statistics.median(taken):7.0f} us per step   x "
            f"{ratio:.4f} (10 to 90 %: {low:.3f} to {high:.3f};"
            f" sums x {sum(taken) / sum(base):.4f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=1, help="gloo ranks on this machine")
    parser.add_argument("--rounds", type=int, default=5, help="besides one to warm up")
    options = parser.parse_args()
    ranks, rounds = options.ranks, options.rounds
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
