"""An incomplete last round on several ranks: padding batches keep the gradient of one process."""

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
    """A loader of numbers on one of three ranks; its flags describe its last batch."""

    last_round = "pad"

    def __iter__(self):
        for number in range(3):
            self.is_padding, self.padding_batches = number == 2, 2 * (number == 2)
            yield number


def test_is_padding_belongs_to_the_current_batch_after_has_next():
    """`has_next` fetches the next batch, but the flags still describe the current one."""
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
    """Records its batches; makes padding batches nonfinite if ``poison`` is set."""

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


class Weighted(Run):
    """A Brain in which each sample has the same weight."""

    def loss_weight(self, batch):
        return len(batch[0])


class OwnFitBatch(Run):
    """A Brain that overrides fit_batch."""

    def fit_batch(self, batch):
        return super().fit_batch(batch)


def train(rank, name="Run", rows=15, factor=1, parallel="ddp", poison=None, given=None):
    """Train two epochs in micro-batches of two rows, the last with one row."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    brain = {"Run": Run, "Weighted": Weighted, "OwnFitBatch": OwnFitBatch}[name](
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
    if given == "loader":
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


def assert_equal_up_to_rounding(one, other):
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
        pytest.param(
            3, 1, 15, "Run", marks=pytest.mark.long
        ),  # 8 micro-batches: the last of three rounds has two
        (2, 2, 9, "Run"),  # 5 micro-batches: the last window has one round, with one of two
        (4, 1, 3, "Run"),  # 2 micro-batches: fewer than ranks in the whole epoch
        (3, 2, 15, "Weighted"),
    ],
)
def test_the_steps_equal_those_of_one_process(ranks, world_size, factor, rows, name, parallel):
    """Weights and mean losses are equal, and all ranks call their hooks equally often."""
    found = ranks(train, world_size, name, rows, factor, parallel)
    alone = train(0, name, rows, factor * world_size)
    for rank in found:
        assert_equal_up_to_rounding(rank, alone)
        calls = [(should_step, len(rank["batches"])) for _, _, should_step in rank["batches"]]
        assert calls == [(s, len(found[0]["batches"])) for _, _, s in found[0]["batches"]]
    seen = [batch for rank in found for batch in rank["batches"]]
    rows_done = [row for is_padding, indices, _ in seen if not is_padding for row in indices]
    assert sorted(rows_done) == sorted([*range(rows), *range(rows)])
    assert any(is_padding for is_padding, _, _ in seen)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("poison", [pytest.param("loss", marks=pytest.mark.long), "activations"])
def test_a_nonfinite_padding_batch_changes_nothing(ranks, poison, parallel):
    """NaN in a padding batch changes no gradient and does not count against the patience."""
    found = ranks(train, 3, "Run", 15, 1, parallel, poison)
    alone = train(0, "Run", 15, 3)
    for rank in found:
        assert_equal_up_to_rounding(rank, alone)


def test_a_given_loader_pads_its_last_round(ranks):
    """A SaveableDataLoader that is passed to fit is set to pad its last round."""
    found = ranks(train, 2, "Run", 9, 1, "ddp", None, "loader")
    assert [rank["batches"][2][:2] for rank in found] == [(False, [8]), (True, [8])]


def test_an_overridden_fit_batch_gets_no_padding_batch(ranks):
    """If fit_batch is overridden, the rows of the last round are split instead."""
    found = ranks(train, 2, "OwnFitBatch", 10, 1)
    assert not any(is_padding for rank in found for is_padding, _, _ in rank["batches"])
    assert [len(rank["batches"][2][1]) for rank in found] == [1, 1]


def test_one_process_has_no_padding_batch():
    """A single process has no incomplete round."""
    assert not any(is_padding for is_padding, _, _ in train(0)["batches"])
