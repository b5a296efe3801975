"""Train, stop and resume where what only Linux and macOS have is taken away: ``... FOLDER``.

torch is imported first, since only the packages of this repository are looked at.
"""

from __future__ import annotations

import builtins
import os
import signal
import sys

import torch
import torch._dynamo  # an optimizer loads it
import torch.utils.data

POSIX_ONLY = (
    *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "fork", "getuid", "pread", "preadv"),
    *("pwrite", "register_at_fork", "sched_getaffinity", "setpgid", "killpg", "posix_fadvise"),
)
SIGNALS = ("SIGUSR1", "SIGUSR2", "SIGKILL", "SIGHUP", "SIGALRM", "SIGCHLD", "SIGPIPE", "SIGCONT")
really_open, really_exists = os.open, os.path.exists


def open_like_windows(path, *arguments, **options):
    """Refuse directories, and the paths of Linux's /proc."""
    if str(path).startswith("/proc"):
        raise FileNotFoundError(path)
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return really_open(path, *arguments, **options)


def open_no_proc(path, *arguments, **options):
    """Refuse the paths of Linux's /proc."""
    if str(path).startswith("/proc"):
        raise FileNotFoundError(path)
    return builtins_open(path, *arguments, **options)


os.open, builtins_open, builtins.open = open_like_windows, builtins.open, open_no_proc
for name in POSIX_ONLY:
    if hasattr(os, name):
        delattr(os, name)
for name in SIGNALS:
    if hasattr(signal, name):
        delattr(signal, name)
sys.modules["fcntl"] = None  # importing it fails
sys.modules["resource"] = None

from brain_ckpt import Checkpointer  # noqa: E402 - as above
from brain_ckpt.cli.main import main as brain_ckpt  # noqa: E402
from brain_core import Brain, EpochCounter, FileTrainLogger, TrainingStopped  # noqa: E402
from brain_data import ReproducibleRandomSampler, SaveableDataLoader  # noqa: E402


class Regression(Brain):
    stop_at = None

    def compute_forward(self, batch, stage):
        return self.modules.model(batch.unsqueeze(1).float())

    def compute_objectives(self, predictions, batch, stage):
        return (predictions + torch.rand(())).square().mean()

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        if self.stop_at == self.step:
            self.stop_at = None
            signal.raise_signal(signal.SIGTERM)


def train(folder, *, stop_at=None, asynchronous=False):
    """Train or resume; return the weights, or why it stopped."""
    torch.manual_seed(0)
    model, epochs = torch.nn.Linear(1, 1), EpochCounter(2)
    logger = FileTrainLogger(os.path.join(folder, "log.txt"))
    brain = Regression(
        {"model": model},
        lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
        run_opts={"device": "cpu", "noprogressbar": True, "ckpt_interval_steps": 2},
        checkpointer=Checkpointer(
            os.path.join(folder, "save"),
            {"model": model, "epochs": epochs, "logger": logger},
            asynchronous=asynchronous,
        ),
    )
    brain.stop_at = stop_at
    rows = range(10)
    loader = SaveableDataLoader(rows, batch_size=2, sampler=ReproducibleRandomSampler(rows))
    try:
        brain.fit(epochs, loader, torch.arange(4))
    except TrainingStopped as stopped:
        return stopped.reason
    finally:
        brain.checkpointer.close()
    return [value.item() for value in model.parameters()]


folder = sys.argv[1]
expected = train(os.path.join(folder, "undisturbed"))
for asynchronous in (False, True):
    run = os.path.join(folder, f"stopped-{asynchronous}")
    assert train(run, stop_at=3, asynchronous=asynchronous) == "SIGTERM"
    assert train(run, asynchronous=asynchronous) == expected
    assert brain_ckpt(["verify", os.path.join(run, "save")]) == 0
sys.stdout.write("resumed exactly\n")
