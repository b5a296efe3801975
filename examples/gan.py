"""Two networks and two optimizers: a generator learns to draw points on a ring.

python examples/gan.py

It shows a `fit_batch` of its own. Kill it and start it again: both optimizers and the noise
continue where they were.
"""

import torch

from brain_ckpt import Checkpointer
from brain_core import Brain, EpochCounter, Stage

NOISE = 8


def network(inputs, outputs):
    """Return a small network."""
    return torch.nn.Sequential(
        torch.nn.Linear(inputs, 64),
        torch.nn.LeakyReLU(0.2),
        torch.nn.Linear(64, 64),
        torch.nn.LeakyReLU(0.2),
        torch.nn.Linear(64, outputs),
    )


class RingGAN(Brain):
    """A discriminator tells real points from drawn ones; the generator learns to deceive it."""

    def init_optimizers(self):
        """Make one optimizer for each network; checkpoints hold both."""
        self.optimizers_dict = {}
        for name in ("generator", "discriminator"):
            parameters = self.modules[name].parameters()
            self.optimizers_dict[name] = torch.optim.Adam(parameters, lr=1e-3, betas=(0.5, 0.9))
            self.checkpointer.add_recoverable(f"{name}_optimizer", self.optimizers_dict[name])

    def draw(self, count):
        """Return points (count, 2) that the generator draws from noise."""
        return self.modules.generator(torch.randn(count, NOISE, device=self.device))

    def fit_batch(self, batch):
        """Step the discriminator, then the generator; return the loss of the latter, detached."""
        real = batch[0].to(self.device)
        judge = self.modules.discriminator
        drawn = self.draw(len(real))
        loss = bce(judge(real), 1.0) + bce(judge(drawn.detach()), 0.0)
        self.step_one("discriminator", loss)
        loss = bce(judge(drawn), 1.0)
        self.step_one("generator", loss)
        self.optimizer_step += 1
        return loss.detach()

    def step_one(self, name, loss):
        """Step the optimizer of one network only."""
        optimizer = self.optimizers_dict[name]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def evaluate_batch(self, batch, stage):
        """Return how far drawn points are from the ring, on average."""
        with torch.no_grad():
            return (self.draw(len(batch[0])).norm(dim=1) - 1).abs().mean()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Print the distance, and keep the best checkpoint."""
        if stage is Stage.VALID:
            print(f"epoch {epoch}: distance from the ring {stage_loss:.3f}", flush=True)
            self.checkpointer.save_and_keep_only({"distance": stage_loss}, min_keys=["distance"])


def bce(scores, target):
    """Return the binary cross entropy against one target for all."""
    return torch.nn.functional.binary_cross_entropy_with_logits(
        scores, torch.full_like(scores, target)
    )


def main(epochs=12, points=4096, folder="results/gan"):
    """Train; return the distance of the best checkpoint."""
    torch.manual_seed(0)
    angles = 2 * torch.pi * torch.rand(points)
    ring = torch.stack((angles.cos(), angles.sin()), dim=1)
    ring = torch.utils.data.TensorDataset(ring + 0.05 * torch.randn(points, 2))
    brain = RingGAN(
        modules={"generator": network(NOISE, 2), "discriminator": network(2, 1)},
        run_opts={"ckpt_interval_steps": 25},
        checkpointer=Checkpointer(folder),
    )
    brain.fit(
        EpochCounter(epochs),
        train_set=ring,
        valid_set=ring,
        train_loader_kwargs={"batch_size": 64, "shuffle": True},
        valid_loader_kwargs={"batch_size": 512},
    )
    return brain.evaluate(ring, min_key="distance", test_loader_kwargs={"batch_size": 512})


if __name__ == "__main__":
    main()
