"""Small Brains and data sets, and a check that a test restores global state."""

from __future__ import annotations

import os
import signal
import sys

import pytest
import torch

from brain_core import Brain
from brain_core.stopping import stop


@pytest.fixture(autouse=True)
def _global_state_is_restored(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SB_GLOBAL_SEED"):
        monkeypatch.delenv(name, raising=False)
    before = (sys.excepthook, signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1))
    torch.manual_seed(0)
    yield
    stop._unserved.clear()  # a signal that a test sent is not for the next one
    after = (sys.excepthook, signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1))
    assert after == before, "a test did not restore an excepthook or a signal handler"
    assert not torch.is_autocast_enabled("cpu"), "a test left autocast on"
    assert torch.is_grad_enabled(), "a test left gradients off"
    assert not torch.are_deterministic_algorithms_enabled(), "a test left determinism on"
    os.environ.pop("SB_GLOBAL_SEED", None)


class Regression(Brain):
    """A Brain with the mean squared error of ``modules.model``."""

    def compute_forward(self, batch, stage):
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        return torch.nn.functional.mse_loss(predictions, batch[1])


class Scripted(Brain):
    """A Brain with one weight, initially 0; a batch's loss is the weight times its number."""

    def compute_forward(self, batch, stage):
        return self.modules.model.weight.sum() * 1.0

    def compute_objectives(self, predictions, batch, stage):
        return predictions * batch.sum() + batch.sum()


@pytest.fixture
def regression():
    """Return the class `Regression`."""
    return Regression


@pytest.fixture
def make_scripted():
    """Return a function that makes a `Scripted` with SGD of rate 1, without clipping by default."""

    def make(cls=Scripted, opt_class=None, **run_opts):
        model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(model.weight)
        options = {"device": "cpu", "max_grad_norm": -1, **run_opts}
        return cls(
            {"model": model},
            opt_class or (lambda p: torch.optim.SGD(p, lr=1.0)),
            run_opts=options,
        )

    return make


@pytest.fixture
def numbers():
    """Return a function that makes a loader of the given numbers, one in a batch."""

    def make(*values):
        data = torch.tensor(values, dtype=torch.float32)
        return torch.utils.data.DataLoader(data, batch_size=1)

    return make


@pytest.fixture
def pairs():
    """Return a dataset of 22 rows, with 4 inputs and 2 targets each."""
    generator = torch.Generator().manual_seed(7)
    return torch.utils.data.TensorDataset(
        torch.randn(22, 4, generator=generator), torch.randn(22, 2, generator=generator)
    )
