"""An incomplete last round on several ranks: one process's gradient, by batches of no weight."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.data import BatchSampler, SequentialSampler

from brain_core import Brain
from brain_core.loop.batches import Batches
from brain_data import DistributedSamplerWrapper, SaveableDataLoader
from brain_dist import get_rank


class Marked:
    """A loader of numbers on one of three ranks, which knows only what it handed out last."""

    last_round = "pad"

    def __iter__(self):
        for number in range(3):
            self.is_padding, self.padding_batches = number == 2, 2 * (number == 2)
            yield number


def test_the_mark_travels_with_its_batch_though_the_next_one_is_fetched_early():
    """Asking whether another batch follows must not give its mark to the one before."""
    batches = Batches(Marked())
    seen = []
    for number in batches:
        batches.has_next()
        seen.append((number, batches.is_padding, batches.padding_batches))
    assert seen == [(0, False, 0), (1, False, 0), (2, True, 2)]


class Rows(torch.utils.data.Dataset):
    """Rows of numbers in double precision, each with its index."""

    def __init__(self, rows):
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
        self.y = self.x.sum(1, keepdim=True)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index], index


class Run(Brain):
    """Counts its hooks, the same on all ranks; poisons fillers where it is told to."""

    poison = None

    def compute_forward(self, batch, stage):
        x = batch[0]
        if self.is_padding and self.poison == "activations":
            x = x * math.inf
        return self.modules.model(x)

    def compute_objectives(self, predictions, batch, stage):
        loss = torch.nn.functional.mse_loss(predictions, batch[1])
        return loss * math.nan if self.is_padding and self.poison == "loss" else loss

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        self.batches.append((self.is_padding, batch[2].tolist(), should_step))

    def on_stage_end(self, stage, stage_loss, epoch=None):
        assert not self.is_padding
        self.means.append(stage_loss)


class Weighed(Run):
    """Each sample weighs the same."""

    def loss_weight(self, batch):
        return len(batch[0])


class Own(Run):
    """Does what `Run` does, in a fit_batch of its own."""

    def fit_batch(self, batch):
        return super().fit_batch(batch)


def train(rank, name="Run", rows=15, factor=1, parallel="ddp", poison=None, given=None):
    """Train two epochs in micro-batches of two, the last with one row."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    brain = {"Run": Run, "Weighed": Weighed, "Own": Own}[name](
        {"model": model.double()},
        lambda p: torch.optim.AdamW(p, lr=0.02),
        run_opts={
            "device": "cpu",
            "max_grad_norm": 0.5,
            "grad_accumulation_factor": factor,
            "parallel": parallel,
            "nonfinite_patience": 0,
        },
    )
    brain.poison, brain.batches, brain.means = poison, [], []
    data, kwargs = Rows(rows), {"batch_size": 2, "shuffle": True}
    if given == "a loader":
        batches = BatchSampler(SequentialSampler(data), 2, drop_last=False)
        data = SaveableDataLoader(data, batch_sampler=DistributedSamplerWrapper(batches))
    brain.fit(range(1, 3), data, train_loader_kwargs=kwargs)
    weights = [p.detach() for p in brain.raw_modules.parameters()]
    whole = [w.full_tensor() if hasattr(w, "full_tensor") else w for w in weights]
    return {
        "batches": brain.batches,
        "means": brain.means,
        "weights": torch.cat([w.flatten() for w in whole]).tolist(),
        "nonfinite": brain.nonfinite_count,
        "steps": brain.optimizer_step,
        "rank": get_rank(),
    }


def assert_like(one, other):
    """Compare two runs up to rounding."""
    assert one["steps"] == other["steps"]
    assert one["nonfinite"] == other["nonfinite"] == 0
    for key in ("means", "weights"):
        torch.testing.assert_close(
            torch.tensor(one[key], dtype=torch.float64),
            torch.tensor(other[key], dtype=torch.float64),
            rtol=1e-10,
            atol=1e-12,
        )


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("world_size", "factor", "rows", "name"),
    [
        (3, 1, 15, "Run"),  # 8 micro-batches: the last of three rounds lacks one
        (2, 2, 9, "Run"),  # 5: the last window has one round, and that lacks one
        (4, 1, 3, "Run"),  # 2: fewer than ranks in the whole epoch
        (3, 2, 15, "Weighed"),
    ],
)
def test_the_steps_are_those_of_one_process(ranks, world_size, factor, rows, name, parallel):
    """Weights and mean losses, whatever the last round lacks; and hooks equally often on all."""
    found = ranks(train, world_size, name, rows, factor, parallel)
    alone = train(0, name, rows, factor * world_size)
    for rank in found:
        assert_like(rank, alone)
        marks = [(should_step, len(rank["batches"])) for _, _, should_step in rank["batches"]]
        assert marks == [(s, len(found[0]["batches"])) for _, _, s in found[0]["batches"]]
    seen = [batch for rank in found for batch in rank["batches"]]
    taken = [row for filler, indices, _ in seen if not filler for row in indices]
    assert sorted(taken) == sorted([*range(rows), *range(rows)])
    assert any(filler for filler, _, _ in seen)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("poison", ["loss", "activations"])
def test_a_filler_that_is_not_finite_spoils_nothing(ranks, poison, parallel):
    """Zero times NaN is NaN: the gradients themselves are silenced, and no patience is used up."""
    found = ranks(train, 3, "Run", 15, 1, parallel, poison)
    alone = train(0, "Run", 15, 3)
    for rank in found:
        assert_like(rank, alone)


def test_a_loader_that_is_given_is_filled_up_too(ranks):
    """Where it is one that can be."""
    found = ranks(train, 2, "Run", 9, 1, "ddp", None, "a loader")
    assert [rank["batches"][2][:2] for rank in found] == [(False, [8]), (True, [8])]


def test_a_fit_batch_of_ones_own_is_handed_no_filler(ranks):
    """It could not be told that a batch weighs nothing: the rows of the last round are split."""
    found = ranks(train, 2, "Own", 10, 1)
    assert not any(filler for rank in found for filler, _, _ in rank["batches"])
    assert [len(rank["batches"][2][1]) for rank in found] == [1, 1]


def test_alone_nothing_is_marked():
    """One process has whole rounds only."""
    assert not any(filler for filler, _, _ in train(0)["batches"])
