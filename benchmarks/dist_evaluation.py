"""Time of an evaluation that is sharded over ranks, relative to one process, in one run.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 benchmarks/dist_evaluation.py

The test set has 101 batches, which two ranks do not divide. Three evaluations run in turns: with
`--shard_evaluation`, with the whole set on every rank as in SpeechBrain, and with the whole set on
rank 0 while the others wait, which is one process with its own core. Each rank needs a core.
"""

from __future__ import annotations

import statistics
import time

import torch
from _timing import paired_ratio
from torch import nn

import brain_dist
from brain_core import Brain, Stage

ROUNDS, BATCH, BATCHES, WIDTH = 9, 32, 101, 256


class Classifier(Brain):
    """A few linear layers with tanh."""

    def compute_forward(self, batch: list[torch.Tensor], stage: Stage) -> torch.Tensor:
        """Return the scores of the classes."""
        return self.modules.model(batch[0])

    def compute_objectives(
        self, predictions: torch.Tensor, batch: list[torch.Tensor], stage: Stage
    ) -> torch.Tensor:
        """Return the cross entropy."""
        return nn.functional.cross_entropy(predictions, batch[1])


def make_brain(*, shards: bool, wraps: bool) -> Classifier:
    """Make a Brain, wrapped by DDP if ``wraps``."""
    torch.manual_seed(0)
    layers = [layer for _ in range(8) for layer in (nn.Linear(WIDTH, WIDTH), nn.Tanh())]
    brain = Classifier(
        {"model": nn.Sequential(*layers, nn.Linear(WIDTH, 10))},
        run_opts={"device": "cpu", "shard_evaluation": shards},
    )
    if wraps:
        brain.on_fit_start()
    return brain


def main() -> None:
    """Measure in turns, and print."""
    torch.set_num_threads(1)
    brain_dist.ddp_init_group({"distributed_backend": "gloo", "device": "cpu"})
    generator = torch.Generator().manual_seed(7)
    rows = BATCH * (BATCHES - 1) + 5
    data = torch.utils.data.TensorDataset(
        torch.randn(rows, WIDTH, generator=generator),
        torch.randint(10, (rows,), generator=generator),
    )
    brains = {
        "one process": make_brain(shards=False, wraps=False),
        "whole set, all ranks": make_brain(shards=False, wraps=True),
        "--shard_evaluation": make_brain(shards=True, wraps=True),
    }
    losses, seconds = {}, {name: [] for name in brains}
    for round_ in range(ROUNDS + 1):
        for name, brain in brains.items():
            brain_dist.ddp_barrier()
            started = time.perf_counter()
            if name == "one process":
                kwargs = {"test_loader_kwargs": {"batch_size": BATCH}}
                losses[name] = brain_dist.run_on_main(brain.evaluate, [data], kwargs)
            else:
                losses[name] = brain.evaluate(data, test_loader_kwargs={"batch_size": BATCH})
            brain_dist.ddp_barrier()
            if round_:
                seconds[name].append(time.perf_counter() - started)
    if brain_dist.if_main_process():
        for name, taken in seconds.items():
            ratio, low, high = paired_ratio(taken, seconds["one process"])
            print(
                f"{name:22} {1e3 * statistics.median(taken):6.0f} ms  x "
                f"{ratio:.2f} ({low:.2f} to {high:.2f}) of one process"
                f"   loss {losses[name]:.13f}"
            )
    torch.distributed.destroy_process_group()


main()
