"""Brains with callbacks."""

from __future__ import annotations

import pytest
import torch

from brain_ckpt import Checkpointer
from brain_core import Brain, Stage


class Net(Brain):
    """A small net with dropout and BatchNorm; saves a checkpoint after each validation."""

    def compute_forward(self, batch, stage):
        return self.modules.net(batch)

    def compute_objectives(self, predictions, batch, stage):
        return (predictions - batch.sum(1, keepdim=True)).square().mean()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage is Stage.VALID:
            self.stage_stats["error"] = -stage_loss
            if self.checkpointer is not None:
                self.checkpointer.save_and_keep_only({"loss": stage_loss}, min_keys=["loss"])


def make_net(folder=None, callbacks=(), cls=Net, **options):
    """Return a Brain with these callbacks, with checkpoints in a folder if one is given."""
    torch.manual_seed(1)
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.2), torch.nn.Linear(4, 1)
    )
    return cls(
        {"net": net},
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        run_opts={"device": "cpu", "noprogressbar": True, **options},
        checkpointer=None if folder is None else Checkpointer(folder),
        callbacks=callbacks,
    )


def rows(count=10, seed=0):
    """Return a dataset of rows of three numbers."""
    return list(torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)))


@pytest.fixture
def net():
    """Return `make_net`, `Net` and `rows`."""

    class Parts:
        make = staticmethod(make_net)
        Net = Net
        rows = staticmethod(rows)

    return Parts


@pytest.fixture
def fit_args():
    """Return a function that makes arguments of fit: rows in batches of two, shuffled."""

    def make(epochs=range(1, 4), count=10):
        return {
            "epoch_counter": epochs,
            "train_set": rows(count),
            "valid_set": rows(4, seed=1),
            "train_loader_kwargs": {"batch_size": 2, "shuffle": True},
            "valid_loader_kwargs": {"batch_size": 2},
        }

    return make
