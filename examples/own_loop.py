"""A training loop of your own, with brain-ckpt and brain-data and no Brain.

python examples/own_loop.py

Kill it at any moment and start it again: it resumes at the batch after its last checkpoint, and
prints the same numbers as a run that was not killed.
"""

import dataclasses

import torch

from brain_ckpt import Checkpointer, RNGState
from brain_data import ResumableLoader


@dataclasses.dataclass
class Progress:
    """What the loop counts; a checkpoint holds it like any other state."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0


def main(epochs=4, folder="results/own_loop"):
    """Train, and return the weights."""
    torch.manual_seed(0)
    x = torch.randn(2048, 8)
    data = torch.utils.data.TensorDataset(x, x.pow(2).sum(1, keepdim=True))
    loader = ResumableLoader(torch.utils.data.DataLoader(data, batch_size=16, shuffle=True))
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 64), torch.nn.GELU(), torch.nn.Dropout(0.1), torch.nn.Linear(64, 1)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)
    progress = Progress()

    saved = {"model": model, "optimizer": optimizer, "schedule": schedule, "loader": loader}
    checkpointer = Checkpointer(folder, {**saved, "progress": progress})
    checkpointer.add_recoverable("rng", RNGState(), per_rank=True)
    checkpointer.recover_if_possible()  # the newest intact checkpoint, if there is one

    for epoch in range(progress.epoch, epochs):
        loader.set_epoch(epoch)
        for inputs, targets in loader:
            loss = torch.nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            progress.step += 1
            progress.loss += loss.item()
            if progress.step % 32 == 0:
                checkpointer.save_and_keep_only({"step": progress.step}, end_of_epoch=False)
        print(f"epoch {epoch}: mean loss {progress.loss / len(loader):.6f}", flush=True)
        progress.epoch, progress.loss = epoch + 1, 0.0
        schedule.step()
        checkpointer.save_and_keep_only({"epoch": epoch})  # the loader begins its next pass
    checkpointer.close()
    return [weight.detach().clone() for weight in model.parameters()]


if __name__ == "__main__":
    main()
