"""Three or more gloo ranks, where DDP changes its order of summation after the first step."""

from __future__ import annotations

import pytest
import torch

from brain_ckpt import Checkpointer
from brain_core import Brain, EpochCounter, TrainingStopped, seed_everything
from brain_dist import BucketOrder, get_rank, wrap_modules


class Rows(torch.utils.data.Dataset):
    """Forty-eight rows, which three and four ranks share evenly in batches of four."""

    def __init__(self):
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(48, 30, generator=generator)
        self.y = torch.randn(48, 2, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


class ReorderedLayers(torch.nn.Module):
    """Uses its layers in another order than it creates them, so that DDP rebuilds its buckets."""

    def __init__(self, width):
        super().__init__()
        self.last = torch.nn.Linear(width, 2)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(4))
        self.first = torch.nn.Linear(30, width)
        self.norm = torch.nn.BatchNorm1d(width)

    def forward(self, x):
        x = self.norm(self.first(x))
        for number in (2, 0, 3, 1):
            x = torch.nn.functional.dropout(self.layers[number](x), 0.1, self.training).tanh()
        return self.last(x)


class Run(Brain):
    """A Brain with two such modules that requests a stop at a given step."""

    def __init__(self, *args, stop_at, bucket_mb, **kwargs):
        super().__init__(*args, **kwargs)
        self.stop_at, self.bucket_mb, self.losses = stop_at, bucket_mb, []

    def on_fit_start(self):
        if self.bucket_mb:
            wrap_modules(
                self.modules,
                device=self.device,
                bucket_cap_mb=self.bucket_mb,
                gradient_as_bucket_view=True,
            )
        super().on_fit_start()

    def compute_forward(self, batch, stage):
        return self.modules.one(batch[0]) + self.modules.two(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        return torch.nn.functional.mse_loss(predictions, batch[1])

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        self.losses.append(loss.item())
        if should_step and self.stop_at and get_rank() == 1 and self.optimizer_step >= self.stop_at:
            self.stop()


def train(folder, width=30, bucket_mb=0.004, accumulation=1, stop_at=None):
    """Train, from a checkpoint if there is one; return the weights and the losses."""
    seed_everything(3)
    modules = {"one": ReorderedLayers(width), "two": ReorderedLayers(width)}
    checkpointer = Checkpointer(folder, dict(modules))
    counter = EpochCounter(3)
    checkpointer.add_recoverable("counter", counter)
    brain = Run(
        modules,
        lambda p: torch.optim.AdamW(p, lr=0.01),
        run_opts={
            "device": "cpu",
            "grad_accumulation_factor": accumulation,
            "recover_attributes": False,
        },
        checkpointer=checkpointer,
        stop_at=stop_at,
        bucket_mb=bucket_mb,
    )
    try:
        brain.fit(counter, Rows(), train_loader_kwargs={"batch_size": 4, "shuffle": True})
    except TrainingStopped:
        assert stop_at is not None
    checkpointer.close()
    weights = {n: v.clone() for m in modules.values() for n, v in m.state_dict().items()}
    return weights, brain.losses


def compare_chains(rank, folder, stops, options):
    """Compare a whole run with stopped runs that restore the bucket order, and that do not."""
    whole, losses = train(folder / "whole", **options)
    compared = []
    for restores_order in (True, False):
        seen = []
        apply, BucketOrder.apply = (
            BucketOrder.apply,
            (BucketOrder.apply if restores_order else lambda order: []),
        )
        try:
            for stop in (*stops, None):
                weights, more = train(folder / f"{restores_order}", stop_at=stop, **options)
                seen += more
        finally:
            BucketOrder.apply = apply
        same = all(torch.equal(weights[name], whole[name]) for name in whole)
        compared.append((same, seen == losses, len(seen) == len(losses)))
    return compared


@pytest.mark.parametrize(
    ("world_size", "options"),
    [
        (3, {}),
        pytest.param(3, {"accumulation": 2}, marks=pytest.mark.long),
        pytest.param(4, {}, marks=pytest.mark.long),
        pytest.param(3, {"width": 300, "bucket_mb": None}, marks=pytest.mark.long),
    ],
    ids=["3", "3, accumulated", "4", "3, DDP's own bucket size"],
)
def test_a_chain_of_stops_ends_with_the_weights_and_losses_of_a_whole_run(
    ranks, tmp_path, world_size, options
):
    """The bits are equal with the restored bucket order, and differ without it.

    The number of batches is equal in both cases, so only the sums differ.
    """
    stops = (1, 3) if "accumulation" in options else (1, 5)
    for one in ranks(compare_chains, world_size, tmp_path, stops, options):
        assert one == [(True, True, True), (False, False, True)]


def stop_once(rank, folder, accumulation, stop_at):
    """Train until a stop or the end; return the weights and the number of batches."""
    weights, losses = train(folder, accumulation=accumulation, stop_at=stop_at)
    return {name: value.tolist() for name, value in weights.items()}, len(losses)


def test_a_run_resumes_on_two_ranks_and_again_on_three(ranks, tmp_path):
    """The steps have the same number of samples, and all ranks end with equal weights."""
    three = ranks(stop_once, 3, tmp_path, 2, 1)
    two = ranks(stop_once, 2, tmp_path, 3, 3)
    back = ranks(stop_once, 3, tmp_path, 2, None)
    assert [len({n for _, n in run}) for run in (three, two, back)] == [1, 1, 1]
    assert min(run[0][1] for run in (three, two, back)) > 0
    assert 3 * three[0][1] + 2 * two[0][1] + 3 * back[0][1] == 3 * 12
    trained = [{k: v for k, v in w.items() if "running" not in k} for w, _ in back]
    assert trained[0] == trained[1] == trained[2]
