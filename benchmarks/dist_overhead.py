"""CPU time of a step of `Brain` on gloo ranks over a bare DDP loop, in one run.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 benchmarks/dist_overhead.py

Both clip gradients; Brain has a checkpoint interval and stop signals on.  They take turns, some
steps each, so that what else the machine does falls on both; the figures are the CPU time of all
threads of all ranks, a ratio is that of two neighbouring turns.  The last line is what the vote on
stopping and saving takes among steps of that length.
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
    from collections.abc import Callable, Iterator

TURNS, WARM_TURNS, STEPS = 600, 10, 20


def make_model() -> nn.Module:
    """Make the model that all train."""
    torch.manual_seed(0)
    return nn.Linear(32, 32)


class Bare:
    """A loop by hand, some steps at a time."""

    def __init__(self) -> None:
        modules = {"model": make_model()}
        brain_dist.wrap_modules(modules, device="cpu")
        self.model = modules["model"]
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.batch = torch.rand(16, 32)

    def __call__(self) -> None:
        """Train."""
        for _ in range(STEPS):
            loss = nn.functional.mse_loss(self.model(self.batch), self.batch)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
            self.optimizer.step()
            self.optimizer.zero_grad()


class TakingTurns:
    """Batches for Brain; between two turns of it the other contender has one."""

    def __init__(self, other: Callable[[], None]) -> None:
        self.other = other
        self.batch = torch.rand(16, 32)
        self.seconds: list[tuple[float, float]] = []  # of Brain, of the other; turn by turn

    def __len__(self) -> int:
        """Count the batches."""
        return (WARM_TURNS + TURNS) * STEPS

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield the same batch again and again."""
        for turn in range(WARM_TURNS + TURNS):
            started = time.process_time()
            for _ in range(STEPS):
                yield self.batch
            between = time.process_time()
            self.other()
            ended = time.process_time()
            if turn >= WARM_TURNS:
                self.seconds.append((between - started, ended - between))


class Small(Brain):
    """The same in Brain's two methods."""

    def compute_forward(self, batch: torch.Tensor, stage: Stage) -> Any:
        """Call the model."""
        return self.modules.model(batch)

    def compute_objectives(self, predictions: Any, batch: torch.Tensor, stage: Stage) -> Any:
        """Compare with the input."""
        return nn.functional.mse_loss(predictions, batch)


def run_beside_brain(other: Callable[[], None]) -> list[tuple[float, float]]:
    """Train by Brain and the other; return the CPU seconds of all ranks, turn by turn."""
    data = TakingTurns(other)
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
    by_rank = brain_dist.gather_objects(data.seconds)
    return [
        (sum(mine for mine, _ in turn), sum(others for _, others in turn))
        for turn in zip(*by_rank, strict=True)
    ]


def vote_seconds(step_s: float, votes: int = 4000) -> float:
    """Return the CPU seconds of one vote among steps of that length, all ranks together."""
    vote = brain_dist.StepVote()
    spent = 0.0
    for number in range(votes + votes // 10):
        if number == votes // 10:
            spent = 0.0  # until then the ranks were finding out how often to ask
        time.sleep(step_s)
        started = time.process_time()
        vote.vote(0)
        spent += time.process_time() - started
    vote.settle()
    vote.close()
    return brain_dist.sum_over_ranks([spent])[0] / votes


def main() -> None:
    """Let them take turns, and print."""
    torch.set_num_threads(1)
    brain_dist.ddp_init_group({"distributed_backend": "gloo"})
    started = time.perf_counter()
    seconds = run_beside_brain(Bare())
    step_s = (time.perf_counter() - started) / (WARM_TURNS + TURNS) / STEPS / 2
    vote_s = vote_seconds(step_s)
    if brain_dist.if_main_process():
        ratios = sorted(mine / others for mine, others in seconds)
        low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
        each = [statistics.median(column) / STEPS * 1e6 for column in zip(*seconds, strict=True)]
        ranks = brain_dist.get_world_size()
        print(f"{ranks} ranks, CPU time of all of them a step, median of {TURNS} turns")
        print(f"bare DDP + clip  {each[1]:7.0f} µs")
        print(
            f"Brain            {each[0]:7.0f} µs  x {statistics.median(ratios):.3f}"
            f" (10 to 90 %: {low:.2f} to {high:.2f};"
            f" sums x {sum(m for m, _ in seconds) / sum(o for _, o in seconds):.3f})"
        )
        print(f"the vote of it   {vote_s * 1e6:7.1f} µs  {100 * vote_s * 1e6 / each[1]:.2f} %")
    torch.distributed.destroy_process_group()


main()
