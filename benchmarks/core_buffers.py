"""CPU time of keeping the buffers of a model with fifty BatchNorms, relative to its step.

    OMP_NUM_THREADS=1 python benchmarks/core_buffers.py

Fifty times Linear(64, 64), BatchNorm1d(64), ReLU; batches of 32 from memory, SGD, gradients
clipped, one thread. Training with and without the guard runs in turns, round by round. The guard
alone is timed, too, because its cost is less than the noise of a step.
"""

from __future__ import annotations

import time

import torch
from _timing import cpu_seconds, print_microseconds

from brain_core.loop.buffer_guard import BufferGuard
from brain_core.loop.train_step import TrainStep

LAYERS, WIDTH, ROWS, ROUNDS, STEPS = 50, 64, 32, 40, 5
NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)


class NoGuard(BufferGuard):
    """Keeps nothing."""

    def remember(self) -> None:
        pass


class Training:
    """A model that is trained by `TrainStep`, with one guard or the other."""

    def __init__(self, guard: BufferGuard) -> None:
        torch.manual_seed(0)
        layers = [
            layer
            for _ in range(LAYERS)
            for layer in (torch.nn.Linear(WIDTH, WIDTH), torch.nn.BatchNorm1d(WIDTH))
        ]
        self.model = torch.nn.Sequential(*layers)
        self.batch = torch.randn(ROWS, WIDTH)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.train_step = TrainStep()
        self.train_step.buffers = guard
        guard.watch(self.model)

    def step(self) -> None:
        self.train_step.begin_batch()
        loss = self.model(self.batch).pow(2).mean()
        self.train_step.backward(loss, NO_SCALER, lambda _: None, always_check=False)
        self.train_step.step([self.optimizer], NO_SCALER, 5.0)


def time_alone(training: Training, calls: int = 2000) -> float:
    """Return the least CPU seconds of keeping the buffers of one step."""
    guard, least = training.train_step.buffers, float("inf")
    for _ in range(calls):
        start = time.thread_time()
        guard.remember()
        guard.forget()
        least = min(least, time.thread_time() - start)
    return least


def main() -> None:
    guarded, bare = Training(BufferGuard()), Training(NoGuard())
    seconds = cpu_seconds({"without": bare.step, "with": guarded.step}, ROUNDS, STEPS)
    print_microseconds(f"A step of {LAYERS} BatchNorms", seconds, "without")
    alone = time_alone(guarded)
    step = min(seconds["without"])
    print(f"  the guard alone {alone * 1e6:.1f} us: {100 * alone / step:.2f} % of a step (least)")


if __name__ == "__main__":
    main()
