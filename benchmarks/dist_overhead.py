"""CPU time of a step of `Brain` on gloo ranks over a bare DDP loop, in one run.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 benchmarks/dist_overhead.py

Both clip gradients; Brain has checkpoint intervals and stop signals on.  Contenders take turns,
round by round; the figures are the CPU time of all threads of all ranks.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import brain_dist
from brain_ckpt import Checkpointer
from brain_core import Brain, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS, WARM, STEPS = 7, 50, 600


class Timed:
    """Batches that note the CPU time when the first and the last warm one is asked for."""

    def __init__(self) -> None:
        self.batch = torch.rand(16, 32)
        self.cpu_s = 0.0

    def __len__(self) -> int:
        """Count the batches."""
        return WARM + STEPS + 1

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield the same batch again and again."""
        for i in range(len(self)):
            if i == WARM:
                started = time.process_time()
            if i == WARM + STEPS:
                self.cpu_s = time.process_time() - started
            yield self.batch


def make_model() -> nn.Module:
    """Make the model that both train."""
    torch.manual_seed(0)
    return nn.Linear(32, 32)


def run_bare(data: Timed) -> None:
    """Train by hand."""
    modules = {"model": make_model()}
    brain_dist.wrap_modules(modules, device="cpu")
    model = modules["model"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for batch in data:
        loss = nn.functional.mse_loss(model(batch), batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()


class Small(Brain):
    """The same in Brain's two methods."""

    def compute_forward(self, batch: torch.Tensor, stage: Stage) -> Any:
        """Call the model."""
        return self.modules.model(batch)

    def compute_objectives(self, predictions: Any, batch: torch.Tensor, stage: Stage) -> Any:
        """Compare with the input."""
        return nn.functional.mse_loss(predictions, batch)


def run_brain(data: Timed) -> None:
    """Train by Brain."""
    with tempfile.TemporaryDirectory() as own:
        folder = brain_dist.ddp_broadcast(own)
        brain = Small(
            {"model": make_model()},
            lambda parameters: torch.optim.SGD(parameters, lr=0.01),
            run_opts={"device": "cpu", "ckpt_interval_minutes": 15, "distributed_backend": "gloo"},
            checkpointer=Checkpointer(folder),
        )
        brain.fit(range(1), data, progressbar=False)
        brain_dist.ddp_barrier()


def main() -> None:
    """Let them take turns, and print."""
    torch.set_num_threads(1)
    brain_dist.ddp_init_group({"distributed_backend": "gloo"})
    contenders = {"bare DDP + clip": run_bare, "Brain": run_brain}
    taken = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, run in contenders.items():
            data = Timed()
            brain_dist.ddp_barrier()
            run(data)
            taken[name].append(brain_dist.sum_over_ranks([data.cpu_s])[0] / STEPS * 1e6)
    if brain_dist.if_main_process():
        bare = taken["bare DDP + clip"]
        for name, values in taken.items():
            ratios = [value / base for value, base in zip(values, bare, strict=True)]
            print(
                f"{name:16} {statistics.median(values):7.0f} µs of CPU a step,"
                f" x {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            )
    torch.distributed.destroy_process_group()


main()
