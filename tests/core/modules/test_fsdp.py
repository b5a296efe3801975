"""FSDP2 through `Brain`: a run saved on two ranks resumes on any number and loads anywhere."""

from __future__ import annotations

import pytest
import torch

from brain_ckpt import Checkpointer
from brain_core import Brain, EpochCounter

MICRO_BATCHES = 4  # in an optimizer step, on any number of ranks


class Net(torch.nn.Module):
    """Blocks that FSDP2 shards one by one, and a frozen parameter."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.LayerNorm(6)) for _ in range(2)
        )
        self.scale = torch.nn.Parameter(torch.full((6,), 0.5), requires_grad=False)
        self.last = torch.nn.Linear(6, 3)  # two and four ranks shard its three rows unevenly

    def forward(self, x):
        for block in self.blocks:
            x = block(x).tanh()
        return self.last(x * self.scale)


class Rows(torch.utils.data.Dataset):
    """Thirty-two rows, for four steps an epoch."""

    def __init__(self):
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(32, 6, generator=generator)
        self.y = torch.randn(32, 3, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


class Run(Brain):
    """A Brain that saves at the end of each epoch."""

    def compute_forward(self, batch, stage):
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        return torch.nn.functional.mse_loss(predictions, batch[1])

    def on_stage_end(self, stage, stage_loss, epoch=None):
        self.checkpointer.save_checkpoint(meta={"loss": stage_loss})


def full_tensor(value):
    """Return the full tensor of a value that may be a DTensor."""
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()


def train(rank, world_size, folder, parallel, epochs):
    """Train up to this epoch, from a checkpoint if any; return weights, moments and steps."""
    torch.manual_seed(0)
    model = Net()
    checkpointer = Checkpointer(folder, {"model": model})
    counter = EpochCounter(epochs)
    checkpointer.add_recoverable("counter", counter)
    brain = Run(
        {"model": model},
        lambda p: torch.optim.AdamW([q for q in p if q.requires_grad], lr=0.01),
        run_opts={
            "device": "cpu",
            "parallel": parallel,
            "max_grad_norm": 0.5,
            "grad_accumulation_factor": MICRO_BATCHES // world_size,
        },
        checkpointer=checkpointer,
    )
    brain.fit(counter, Rows(), train_loader_kwargs={"batch_size": 2, "shuffle": True})
    checkpointer.close()
    moments = [
        {name: full_tensor(value).tolist() for name, value in state.items()}
        for state in brain.optimizer.state_dict()["state"].values()
    ]
    weights = {
        name: full_tensor(value).tolist() for name, value in brain.raw_modules.state_dict().items()
    }
    return weights, moments, brain.optimizer_step


def assert_close(one, other):
    """Compare weights and moments up to rounding."""
    assert one[0].keys() == other[0].keys()
    assert one[2] == other[2]
    pairs = [(one[0][name], other[0][name]) for name in one[0]]
    pairs += [(a[k], b[k]) for a, b in zip(one[1], other[1], strict=True) for k in a]
    for a, b in pairs:
        torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-5, atol=1e-7)


@pytest.fixture
def undisturbed(ranks, tmp_path):
    """Return the result of two epochs of FSDP2 on two ranks without a stop."""
    return ranks(train, 2, 2, tmp_path / "undisturbed", "fsdp", 2)[0]


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(4, marks=pytest.mark.long)])
def test_an_fsdp_run_of_two_ranks_resumes_on_one_two_and_four(
    ranks, tmp_path, undisturbed, world_size
):
    """The steps are the same, with equal bits on two ranks and up to rounding on others.

    One process has no process group and resumes with an unwrapped module.
    """
    ranks(train, 2, 2, tmp_path / "save", "fsdp", 1)
    group = world_size > 1
    resumed = ranks(train, world_size, world_size, tmp_path / "save", "fsdp", 2, group=group)
    assert all(one == resumed[0] for one in resumed)
    assert_close(resumed[0], undisturbed)
    assert (resumed[0] == undisturbed) or world_size != 2
    assert resumed[0][2] == 8


def test_an_fsdp_checkpoint_loads_into_a_plain_module_and_optimizer(ranks, tmp_path):
    """A Checkpointer without a `Brain` loads the checkpoint in one process.

    The same is true for DDP: a checkpoint does not depend on how the module is wrapped.
    """
    for parallel in ("fsdp", "ddp"):
        folder = tmp_path / parallel
        weights, moments, _ = ranks(train, 2, 2, folder, parallel, 1)[0]
        model = Net()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        loading = Checkpointer(folder, {"model": model, "optimizer": optimizer})
        assert loading.recover_if_possible() is not None
        loaded = {name: value.tolist() for name, value in model.state_dict().items()}
        assert {f"model.{name}": value for name, value in loaded.items()} == weights
        state = optimizer.state_dict()["state"]
        assert [{k: v.tolist() for k, v in s.items()} for s in state.values()] == moments


def test_fsdp_and_ddp_resume_from_each_others_checkpoints(ranks, tmp_path, undisturbed):
    """The results are equal up to rounding."""
    for first, second in (("fsdp", "ddp"), ("ddp", "fsdp")):
        folder = tmp_path / first
        ranks(train, 2, 2, folder, first, 1)
        resumed = ranks(train, 2, 2, folder, second, 2)
        assert_close(resumed[0], undisturbed)
