"""Train twice, once undisturbed and once killed five times, and draw both losses: one line.

python examples/killed_five_times.py

SIGKILL ends the second run at random steps. Each time it is started again. It needs matplotlib.
"""

import contextlib
import multiprocessing
import os
import random
import tempfile
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure

from brain_ckpt import Checkpointer
from brain_core import Brain, EpochCounter

START = "fork" if hasattr(os, "fork") else "spawn"


class Curve(Brain):
    """Fits a curve, with dropout, and writes each loss to a file."""

    def compute_forward(self, batch, stage):
        """Return the network's values."""
        return self.modules.model(batch[0].to(self.device))

    def compute_objectives(self, predictions, batch, stage):
        """Return the mean squared error."""
        return torch.nn.functional.mse_loss(predictions, batch[1].to(self.device))

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Append the step and its loss, with all digits."""
        self.hparams.losses.write(f"{self.optimizer_step} {loss.item().hex()}\n")
        self.hparams.losses.flush()


def train(folder, epochs):
    """Train until the end, or until somebody kills this process; resume what is in the folder."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.linspace(-3, 3, 8192).unsqueeze(1)
    layers = torch.nn.Linear(1, 64), torch.nn.Tanh(), torch.nn.Dropout(0.1), torch.nn.Linear(64, 1)
    with open(Path(folder, "losses.txt"), "a", encoding="utf-8") as losses:
        brain = Curve(
            modules={"model": torch.nn.Sequential(*layers)},
            opt_class=lambda parameters: torch.optim.Adam(parameters, lr=0.002),
            hparams={"losses": losses},
            run_opts={"device": "cpu", "ckpt_interval_steps": 25, "noprogressbar": True},
            checkpointer=Checkpointer(Path(folder, "save")),
        )
        data = torch.utils.data.TensorDataset(x, torch.sin(2 * x))
        loading = {"batch_size": 64, "shuffle": True}
        brain.fit(EpochCounter(epochs), data, train_loader_kwargs=loading)


def read(folder):
    """Return the (step, loss) pairs that a run wrote, in the order in which it wrote them."""
    with contextlib.suppress(FileNotFoundError):
        lines = Path(folder, "losses.txt").read_text(encoding="utf-8").splitlines(keepends=True)
        pairs = [line.split() for line in lines if line.endswith("\n")]
        return [(int(step), float.fromhex(loss)) for step, loss in pairs]
    return []


def start(folder, epochs):
    """Start a process that trains."""
    process = multiprocessing.get_context(START).Process(target=train, args=(str(folder), epochs))
    process.start()
    return process


def kill_after(process, folder, step):
    """Kill a run once it has reached a step; return the step that it was at."""
    while process.is_alive():
        if max((done for done, _ in read(folder)), default=0) >= step:
            process.kill()
            process.join()
            return read(folder)[-1][0]
        time.sleep(0.002)
    return None


def draw(losses, kills, path):
    """Draw both runs, and where the second one was killed."""
    figure = Figure(figsize=(9, 3.6), layout="constrained", facecolor="white")
    axes = figure.subplots()
    untouched, killed = losses
    axes.plot(*zip(*untouched, strict=True), color="#90caf9", linewidth=5, label="never touched")
    axes.plot(
        *zip(*killed, strict=True),
        color="#c62828",
        linewidth=0.9,
        label=f"killed {len(kills)} times",
    )
    for number, step in enumerate(kills):
        label = "SIGKILL" if number == 0 else None
        axes.axvline(step, color="#555555", linestyle=":", linewidth=1, label=label)
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None), xlim=(0, None))
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=120)


def main(epochs=4, kills=5, picture="killed.png", seed=4):
    """Train, kill, compare and draw; return the largest difference of any loss, which is 0."""
    steps = 128 * epochs
    aims = sorted(random.Random(seed).sample(range(30, steps - 60), kills))
    with tempfile.TemporaryDirectory() as untouched, tempfile.TemporaryDirectory() as disturbed:
        start(untouched, epochs).join()
        done = [kill_after(start(disturbed, epochs), disturbed, aim) for aim in aims]
        start(disturbed, epochs).join()
        expected, found = dict(read(untouched)), read(disturbed)
    difference = max(abs(loss - expected[step]) for step, loss in found)
    print(f"killed at steps {', '.join(map(str, done))} of {steps}")
    print(f"steps that were computed again: {len(found) - len(dict(found))}")
    print(f"largest difference of a loss between the two runs: {difference}")
    missing = expected.keys() - dict(found).keys()
    if missing:
        raise RuntimeError(f"the second run must have all {steps} steps, lacks {sorted(missing)}")
    draw([sorted(expected.items()), sorted(dict(found).items())], done, picture)
    return difference


if __name__ == "__main__":
    main()
