"""Shard a model, its gradients and its optimizer over all ranks with FSDP2.

torchrun --standalone --nproc-per-node 2 examples/fsdp/train.py

The script has no word of FSDP but one option. Each rank saves its shards; the checkpoint can be
resumed on another number of ranks, under DDP, or in one process:

python examples/fsdp/train.py
"""

import torch

from brain_ckpt import Checkpointer
from brain_core import Brain, EpochCounter
from brain_dist import ddp_init_group, get_world_size, if_main_process


class Block(torch.nn.Module):
    """A residual block. FSDP2 shards the children of a module: give it blocks of equal size."""

    def __init__(self, width):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.LayerNorm(width),
            torch.nn.Linear(width, 4 * width),
            torch.nn.GELU(),
            torch.nn.Linear(4 * width, width),
        )

    def forward(self, x):
        """Return the input plus what the layers make of it."""
        return x + self.layers(x)


class Parity(Brain):
    """Learns whether a row has an even number of ones."""

    def compute_forward(self, batch, stage):
        """Return a score for each row."""
        return self.modules.model(batch[0].to(self.device)).squeeze(1)

    def compute_objectives(self, predictions, batch, stage):
        """Return the binary cross entropy."""
        return torch.nn.functional.binary_cross_entropy_with_logits(
            predictions, batch[1].to(self.device)
        )

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Print the loss, and save."""
        if if_main_process():
            print(f"epoch {epoch}, {get_world_size()} ranks: loss {stage_loss:.4f}", flush=True)
        self.checkpointer.save_and_keep_only({"loss": stage_loss})


def main(epochs=7, rows=4096, width=64, folder="results/fsdp", device=None):
    """Train; return the Brain."""
    options = {"parallel": "fsdp", "ckpt_interval_steps": 16}
    if device is not None:
        options["device"] = device
    ddp_init_group(options)
    torch.manual_seed(0)
    x = (torch.rand(rows, 5) > 0.5).float()
    data = torch.utils.data.TensorDataset(x, x.sum(1) % 2)
    layers = [torch.nn.Linear(5, width), Block(width), Block(width), torch.nn.Linear(width, 1)]
    brain = Parity(
        {"model": torch.nn.Sequential(*layers)},
        lambda parameters: torch.optim.AdamW(parameters, lr=3e-3),
        run_opts=options,
        checkpointer=Checkpointer(folder),
    )
    loading = {"batch_size": 32, "shuffle": True}
    brain.fit(EpochCounter(epochs), data, train_loader_kwargs=loading)
    return brain


if __name__ == "__main__":
    main()
