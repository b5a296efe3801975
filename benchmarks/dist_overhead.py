"""CPU time of a step of `Brain` on gloo ranks, relative to a bare DDP loop, in one run.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 benchmarks/dist_overhead.py

Both clip gradients and read from a DataLoader; Brain has a checkpoint interval and handles stop
signals. They run in turns of a few steps, so that other load on the machine affects both. The
figures are the CPU time of all threads of all ranks: the least turn of each, and the median ratio
of adjacent turns. Of the difference, 20 us a rank are the seeds of each batch: the random numbers
that a dataset draws depend on its position alone, and a batch can be read again. Workers would seed
beside the training. The last line is the CPU time of the vote on stopping
and saving, between steps of that length.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from _timing import paired_ratio
from _verdict import report, take_quick
from torch import nn
from torch.utils.data import DataLoader

import brain_dist
from brain_ckpt import Checkpointer
from brain_core import Brain, Stage

if TYPE_CHECKING:
    from collections.abc import Callable

QUICK = take_quick()
TURNS, WARM_UP_TURNS, STEPS = (60 if QUICK else 600), 10, 20


def make_model() -> nn.Module:
    """Make the model that both train."""
    torch.manual_seed(0)
    return nn.Linear(32, 32)


class Batches(torch.utils.data.Dataset[torch.Tensor]):
    """One batch, again and again; calls a function before each turn of so many."""

    def __init__(self, before_turn: Callable[[], None] | None = None) -> None:
        self.batch = torch.rand(16, 32)
        self.read = 0
        self._before_turn = before_turn

    def __len__(self) -> int:
        """Return the number of batches of all ranks."""
        return (WARM_UP_TURNS + TURNS) * STEPS * brain_dist.get_world_size()

    def __getitem__(self, number: int) -> torch.Tensor:
        """Return the batch."""
        if self._before_turn is not None and self.read % STEPS == 0:
            self._before_turn()
        self.read += 1
        return self.batch


def load(batches: Batches) -> DataLoader[Any]:
    """Make the loader of both contenders."""
    return DataLoader(batches, batch_size=1, collate_fn=itemgetter(0))


class BareLoop:
    """A hand-written DDP loop that trains a few steps per call."""

    def __init__(self) -> None:
        modules = {"model": make_model()}
        brain_dist.wrap_modules(modules, device="cpu")
        self.model = modules["model"]
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.batches = iter(load(Batches()))

    def __call__(self) -> None:
        """Train for a few steps."""
        for batch in islice(self.batches, STEPS):
            loss = nn.functional.mse_loss(self.model(batch), batch)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
            self.optimizer.step()
            self.optimizer.zero_grad()


class Turns:
    """Runs the other contender before each turn of Brain, and notes the CPU seconds of both."""

    def __init__(self, other: Callable[[], None]) -> None:
        self._other = other
        self._resumed = 0.0
        self._of_other = 0.0
        self.seconds: list[tuple[float, float]] = []  # of Brain and of the other

    def __call__(self) -> None:
        """End a turn of Brain, and run the other."""
        ended = time.process_time()
        if self._resumed:
            self.seconds.append((ended - self._resumed, self._of_other))
        self._other()
        self._resumed = time.process_time()
        self._of_other = self._resumed - ended


class Small(Brain):
    """The same training with Brain."""

    def compute_forward(self, batch: torch.Tensor, stage: Stage) -> Any:
        """Return the model's output."""
        return self.modules.model(batch)

    def compute_objectives(self, predictions: Any, batch: torch.Tensor, stage: Stage) -> Any:
        """Return the mean squared error to the input."""
        return nn.functional.mse_loss(predictions, batch)


def alternate_with_brain(other: Callable[[], None]) -> list[tuple[float, float]]:
    """Train with Brain and the other in turns; return the CPU seconds of all ranks by turn."""
    turns = Turns(other)
    with tempfile.TemporaryDirectory() as of_this_rank:
        folder = brain_dist.ddp_broadcast(of_this_rank)
        brain = Small(
            {"model": make_model()},
            lambda parameters: torch.optim.SGD(parameters, lr=0.01),
            run_opts={"device": "cpu", "ckpt_interval_minutes": 15, "distributed_backend": "gloo"},
            checkpointer=Checkpointer(folder),
        )
        brain.fit(range(1), load(Batches(turns)), progressbar=False)
        brain_dist.ddp_barrier()
    by_rank = brain_dist.gather_objects(turns.seconds[WARM_UP_TURNS:])
    return [
        (sum(brain for brain, _ in turn), sum(bare for _, bare in turn))
        for turn in zip(*by_rank, strict=True)
    ]


def vote_seconds(step_s: float, votes: int = 400 if QUICK else 4000) -> float:
    """Return the CPU seconds of one vote between steps of that length, summed over all ranks."""
    vote = brain_dist.StepVote()
    spent = 0.0
    for number in range(votes + votes // 10):
        if number == votes // 10:
            spent = 0.0  # before, the ranks were still adapting how often they vote
        time.sleep(step_s)
        started = time.process_time()
        vote.vote(0)
        spent += time.process_time() - started
    vote.settle()
    vote.close()
    return brain_dist.sum_over_ranks([spent])[0] / votes


def main() -> None:
    """Measure in turns, and print."""
    torch.set_num_threads(1)
    brain_dist.ddp_init_group({"distributed_backend": "gloo"})
    started = time.perf_counter()
    seconds = alternate_with_brain(BareLoop())
    step_s = (time.perf_counter() - started) / (WARM_UP_TURNS + TURNS) / STEPS / 2
    vote_s = vote_seconds(step_s)
    if brain_dist.if_main_process():
        of_brain, of_bare = zip(*seconds, strict=True)
        ratio, low, high = paired_ratio(of_brain, of_bare, tail=0.1)
        brain_us, bare_us = (statistics.median(s) / STEPS * 1e6 for s in (of_brain, of_bare))
        least_brain_us, least_bare_us = (min(s) / STEPS * 1e6 for s in (of_brain, of_bare))
        ranks = brain_dist.get_world_size()
        print(f"{ranks} ranks, CPU time per step of all of them, {TURNS} turns: median (least)")
        print(f"bare DDP + clip  {bare_us:7.0f} ({least_bare_us:.0f}) µs")
        print(
            f"Brain            {brain_us:7.0f} ({least_brain_us:.0f}) µs  x {ratio:.3f}"
            f" (10 to 90 %: {low:.2f} to {high:.2f}; least x {least_brain_us / least_bare_us:.3f};"
            f" sums x {sum(of_brain) / sum(of_bare):.3f})"
        )
        report(
            f"a step on {ranks} ranks, intervals and stop signals on",
            least_brain_us,
            "µs",
            1.03,
            "bare DDP + clip",
            least_bare_us,
        )
        print(f"its vote         {vote_s * 1e6:7.1f} µs  {100 * vote_s * 1e6 / bare_us:.2f} %")
    torch.distributed.destroy_process_group()


main()
