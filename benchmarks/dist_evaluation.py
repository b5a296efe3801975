"""Time of an evaluation dealt out over ranks beside one process's, in one run.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 benchmarks/dist_evaluation.py

The test set has 101 batches, which two ranks do not divide.  `--shard_evaluation` and the whole
set on every rank, as SpeechBrain does it, take turns with the whole set on rank 0 alone while the
others wait: that is one process with a core of its own.  Ranks need a core each.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

import brain_dist
from brain_core import Brain, Stage

ROUNDS, BATCH, BATCHES, WIDTH = 9, 32, 101, 256


class Classifier(Brain):
    """A few layers."""

    def compute_forward(self, batch: list[torch.Tensor], stage: Stage) -> torch.Tensor:
        """Call the model."""
        return self.modules.model(batch[0])

    def compute_objectives(
        self, predictions: torch.Tensor, batch: list[torch.Tensor], stage: Stage
    ) -> torch.Tensor:
        """Compare with the classes."""
        return nn.functional.cross_entropy(predictions, batch[1])


def make_brain(*, shards: bool, wraps: bool) -> Classifier:
    """Make a Brain, wrapped by DDP if asked."""
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
    """Let them take turns, and print."""
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
        "every rank all": make_brain(shards=False, wraps=True),
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
            ratios = [a / b for a, b in zip(taken, seconds["one process"], strict=True)]
            print(
                f"{name:20} {1e3 * statistics.median(taken):6.0f} ms  x "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) of one"
                f"   loss {losses[name]:.13f}"
            )
    torch.distributed.destroy_process_group()


main()
