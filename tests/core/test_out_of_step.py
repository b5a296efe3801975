"""Scripts whose ranks do different things: each ends, and says who was where."""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path

import pytest
import torch

from brain_ckpt import Checkpointer
from brain_core import Brain, Stage
from brain_dist import (
    ddp_barrier,
    gather_objects,
    if_main_process,
    run_on_main,
    set_control_timeout,
)

# How long a rank is waited for. An hour by default; each kind here needs it only where a rank is
# busy elsewhere and cannot be asked.
TIMEOUT_S = 10.0


class Diverging(Brain):
    """A training in which one rank does something else in a hook."""

    kind = ""

    def compute_forward(self, batch, stage):
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        return torch.nn.functional.mse_loss(predictions, batch[1])

    def on_stage_end(self, stage, stage_loss, epoch):
        if stage is not Stage.TRAIN or not if_main_process():
            return
        if self.kind == "save":
            self.checkpointer.save_checkpoint()
        elif self.kind == "recover":
            self.checkpointer.recover_if_possible()
        elif self.kind == "barrier":
            ddp_barrier()
        elif self.kind == "gather":
            gather_objects(epoch)
        elif self.kind == "run_on_main":
            run_on_main(int)
        elif self.kind == "evaluate":
            self.evaluate(data(8))
        elif self.kind == "exception":
            raise KeyError("a key")
        elif self.kind == "exit":
            raise SystemExit(3)

    def fit_batch(self, batch):
        if self.kind == "batch" and self.step == 3 and if_main_process():
            return torch.zeros(())  # this rank takes no part in the reduction of gradients
        return super().fit_batch(batch)


def data(rows):
    """Return a set of rows."""
    return torch.utils.data.TensorDataset(torch.randn(rows, 4), torch.randn(rows, 2))


def train(rank, kind, folder):
    """Run a script of a kind; return what it said, and after how many seconds."""
    logging.disable(logging.INFO)
    set_control_timeout(TIMEOUT_S)
    Diverging.kind = kind
    options = {"device": "cpu", "ckpt_interval_steps": 2}
    brain = Diverging(
        {"model": torch.nn.Linear(4, 2)},
        lambda p: torch.optim.SGD(p, lr=0.1),
        run_opts=options,
        checkpointer=Checkpointer(folder),
    )
    start = time.monotonic()
    try:
        script(brain, kind)
    except (KeyError, SystemExit, RuntimeError) as error:
        return f"{type(error).__name__}: {error}", time.monotonic() - start
    return "ended", time.monotonic() - start


def script(brain, kind):
    """Train, and test where only one rank may reach it."""
    rank = brain.rank
    if kind == "before" and rank == 0:
        brain.evaluate(data(8))
    epochs = 2 + rank if kind == "epochs" else 2
    brain.fit(range(epochs), data(16))
    if kind == "after" and rank == 0:
        brain.evaluate(data(8))
    if kind == "after":
        brain.fit(range(4), data(16))


# Of each kind, whether the ranks are told at once, and what each rank was in.
AT_ONCE = {
    "before": ("evaluate()", "fit()"),
    "after": ("evaluate()", "fit()"),
    "epochs": ("fit()", "_fit_train() in fit()"),
    "save": ("save_checkpoint() in _fit_train() in fit()", "_fit_valid() in fit()"),
    "recover": ("recover_if_possible() in _fit_train() in fit()", "_fit_valid() in fit()"),
    "barrier": ("ddp_barrier() in _fit_train() in fit()", "_fit_valid() in fit()"),
    "gather": ("gather_objects() in _fit_train() in fit()", "_fit_valid() in fit()"),
    "run_on_main": ("_fit_train() in fit()", "_fit_valid() in fit()"),
    "evaluate": ("evaluate() in _fit_train() in fit()", "_fit_valid() in fit()"),
}
LATER = {"exception": "a key", "exit": "SystemExit: 3", "batch": "RanksLostError"}
RARE = set(AT_ONCE) - {"save", "epochs"}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.long] * (kind in RARE)) for kind in AT_ONCE]
)
def test_ranks_that_do_different_things_are_told_at_once_where_each_one_is(ranks, kind, tmp_path):
    """Also while one of them is on its way into the next pass over the data."""
    place = rf" at \S*{re.escape(Path(__file__).name)}:\d+"
    parts = [
        rf"rank {rank} (is )?in [\w() ]*{re.escape(call)}{place}"
        for rank, call in enumerate(AT_ONCE[kind])
    ]
    for rank, (said, seconds) in enumerate(ranks(train, 2, kind, tmp_path / "save")):
        print(f"{kind}: rank {rank} after {seconds:.1f} s: {said}")  # noqa: T201
        assert re.search(rf"OutOfStepError: .*{parts[0]}, {parts[1]}: call it", said), said


@pytest.mark.long
@pytest.mark.parametrize("kind", LATER)
def test_ranks_end_where_one_cannot_be_asked(ranks, kind, tmp_path):
    """It has failed, or waits inside a collective of torch: the others wait for the timeout."""
    for rank, (said, seconds) in enumerate(ranks(train, 2, kind, tmp_path / "save")):
        print(f"{kind}: rank {rank} after {seconds:.1f} s: {said}")  # noqa: T201
        assert LATER[kind] in said
