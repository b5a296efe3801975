"""Runs that unfreeze modules and add parameter groups while they train, killed and resumed."""

from __future__ import annotations

import pytest
import torch

from brain_ckpt import Checkpointer
from brain_core import Brain, EpochCounter, Stage
from brain_core.testing import assert_resumes_exactly
from brain_dist import compat, full_state_dict

ROWS = torch.randn(8, 3, generator=torch.Generator().manual_seed(3))
# Four batches an epoch, or two on two ranks, with a checkpoint after every second one: killed in
# the epoch before the change, at its first batch, within it, at its end, and in the epoch after it.
KILLS = {1: [3, 5, 6, 8, 11], 2: [1, 3, 4, 5, 6]}


class Net(torch.nn.Module):
    """An encoder that is frozen at first, and a head."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Linear(3, 4)
        self.drop = torch.nn.Dropout(0.2)
        self.head = torch.nn.Linear(4, 2)
        self.encoder.requires_grad_(requires_grad=False)

    def forward(self, x):
        return self.head(self.drop(self.encoder(x).tanh()))


class Frozen(Brain):
    """Trains the head alone."""

    def compute_forward(self, batch, stage):
        return self.modules.model(batch)

    def compute_objectives(self, predictions, batch, stage):
        return predictions.square().mean()

    @property
    def encoder(self):
        return self.raw_modules.model.encoder

    def unfreeze(self):
        self.encoder.requires_grad_(requires_grad=True)
        self.optimizer.add_param_group(
            {"params": self.encoder.parameters(), "lr": 0.01, "weight_decay": 0.3}
        )

    def at_epoch(self, stage, epoch, number):
        return stage is Stage.TRAIN and epoch == number


class AtAnEpoch(Frozen):
    """The plain recipe of gradual unfreezing."""

    def on_stage_start(self, stage, epoch=None):
        if self.at_epoch(stage, epoch, 2):
            self.unfreeze()


class AtAStep(Frozen):
    """Inside an epoch: the hook is not called again where the run resumes."""

    def on_fit_batch_start(self, batch, should_step):
        if self.optimizer_step == 3:
            self.unfreeze()


class IntoTheFirstGroup(Frozen):
    """The recipe extends the list of parameters of a group."""

    def on_stage_start(self, stage, epoch=None):
        if self.at_epoch(stage, epoch, 2):
            self.encoder.requires_grad_(requires_grad=True)
            self.optimizer.param_groups[0]["params"].extend(self.encoder.parameters())


class FrozenAgain(AtAnEpoch):
    """What the encoder has learned stays, and its moments too."""

    def on_stage_start(self, stage, epoch=None):
        super().on_stage_start(stage, epoch)
        if self.at_epoch(stage, epoch, 3):
            self.encoder.requires_grad_(requires_grad=False)


class WithANewOptimizer(Frozen):
    """The recipe makes the optimizer anew when it unfreezes."""

    def on_stage_start(self, stage, epoch=None):
        if self.at_epoch(stage, epoch, 2):
            self.encoder.requires_grad_(requires_grad=True)
            self.init_optimizers()


class WithARateOfTheEpoch(AtAnEpoch):
    """The rate is set when an epoch starts, and decays with each batch."""

    def on_stage_start(self, stage, epoch=None):
        super().on_stage_start(stage, epoch)
        if stage is Stage.TRAIN:
            self.optimizer.param_groups[0]["lr"] = 0.1 / epoch

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        self.optimizer.param_groups[0]["lr"] *= 0.5


class WithANewHead(AtAnEpoch):
    """The hook draws new weights."""

    def on_stage_start(self, stage, epoch=None):
        super().on_stage_start(stage, epoch)
        if self.at_epoch(stage, epoch, 2):
            torch.nn.init.normal_(self.raw_modules.model.head.weight)


class AWholeModule(Frozen):
    """The encoder is a module of its own, frozen as a whole, and the recipe adds no recoverable."""

    def compute_forward(self, batch, stage):
        return self.modules.head(self.modules.encoder(batch).tanh())

    @property
    def encoder(self):
        return self.raw_modules.encoder

    def on_stage_start(self, stage, epoch=None):
        if self.at_epoch(stage, epoch, 2):
            self.unfreeze()


def make_of_two_modules(**options):
    """Return a function that makes an `AWholeModule`."""

    def make_brain(folder):
        encoder = torch.nn.Linear(3, 4).requires_grad_(requires_grad=False)
        return AWholeModule(
            {"encoder": encoder, "head": torch.nn.Linear(4, 2)},
            lambda ps: torch.optim.AdamW([p for p in ps if p.requires_grad], lr=0.05),
            run_opts={"device": "cpu", "ckpt_interval_steps": 2, **options},
            checkpointer=Checkpointer(folder),
        )

    return make_brain


def making(cls, **options):
    """Return a function that makes a Brain whose optimizer holds what is trainable at first."""

    def make_brain(folder):
        model = Net()
        return cls(
            {"model": model},
            lambda ps: torch.optim.AdamW([p for p in ps if p.requires_grad], lr=0.05),
            run_opts={"device": "cpu", "ckpt_interval_steps": 2, **options},
            checkpointer=Checkpointer(folder, {"model": model}),
        )

    return make_brain


def fit_args(_):
    """Three epochs."""
    return {
        "epoch_counter": EpochCounter(3),
        "train_set": ROWS,
        "train_loader_kwargs": {"batch_size": 2, "shuffle": True},
    }


@pytest.mark.parametrize(
    "cls",
    [
        AtAnEpoch,
        AtAStep,
        FrozenAgain,
        *(
            pytest.param(cls, marks=pytest.mark.long)
            for cls in (IntoTheFirstGroup, WithANewOptimizer, WithARateOfTheEpoch, WithANewHead)
        ),
    ],
)
def test_a_run_that_unfreezes_is_equal_when_killed_at_five_places(cls):
    """Every weight, moment, option and flag, batch by batch."""
    assert_resumes_exactly(making(cls), fit_args, kills=KILLS[1])


def skip_without_fsdp(parallel):
    """Skip a test of FSDP2 where torch cannot run it on the CPU."""
    if parallel == "fsdp" and not compat.fsdp_supports_cpu():
        pytest.skip("FSDP2 on the CPU needs a later torch")


@pytest.mark.parametrize(
    ("cls", "parallel"),
    [
        (AtAStep, "fsdp"),
        pytest.param(FrozenAgain, "ddp", marks=pytest.mark.long),
        pytest.param(AtAStep, "ddp", marks=pytest.mark.long),
        pytest.param(FrozenAgain, "fsdp", marks=pytest.mark.long),
        pytest.param(AtAnEpoch, "ddp", marks=pytest.mark.long),
        pytest.param(AtAnEpoch, "fsdp", marks=pytest.mark.long),
    ],
)
def test_so_is_one_on_two_ranks(cls, parallel):
    """DDP shares the gradients of the encoder from then on, and FSDP2 computes them."""
    skip_without_fsdp(parallel)
    assert_resumes_exactly(making(cls, parallel=parallel), fit_args, kills=KILLS[2], ranks=2)


@pytest.mark.parametrize(
    ("ranks", "parallel"),
    [
        (1, "ddp"),
        pytest.param(2, "fsdp", marks=pytest.mark.long),
        pytest.param(2, "ddp", marks=pytest.mark.long),
    ],
)
def test_a_module_that_was_frozen_as_a_whole_is_saved_and_wrapped_once_it_trains(ranks, parallel):
    """FSDP2 puts shards in place of the parameters that the hook gave to the optimizer."""
    skip_without_fsdp(parallel)
    assert_resumes_exactly(
        make_of_two_modules(parallel=parallel), fit_args, kills=KILLS[ranks], ranks=ranks
    )


def weights_after(rank, folder, parallel, name):
    """Train on this rank and return all weights, and whether the encoder was trained."""
    torch.manual_seed(0)
    brain = making(globals()[name], parallel=parallel)(folder)
    before = brain.modules.model.encoder.weight.detach().clone()
    brain.fit(**fit_args(brain))
    brain.checkpointer.close()
    weights = full_state_dict(brain.modules.model)
    trained = not torch.equal(weights["encoder.weight"], before)
    return {name: value.tolist() for name, value in weights.items()}, trained


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("cls", [pytest.param(AtAnEpoch, marks=pytest.mark.long), AtAStep])
def test_all_ranks_train_what_a_hook_unfreezes_with_the_same_gradients(
    ranks, tmp_path, parallel, cls
):
    """A module that was wrapped while it was frozen is wrapped anew."""
    first, second = ranks(weights_after, 2, tmp_path, parallel, cls.__name__)
    assert first == second
    assert first[1]
