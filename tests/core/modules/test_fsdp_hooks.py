"""FSDP2 through `Brain`, where hooks run forwards, evaluate and save between training passes."""

from __future__ import annotations

import pytest
import torch

from brain_ckpt import Checkpointer
from brain_core import Brain, EpochCounter, Stage
from brain_dist import full_state_dict, if_main_process, is_sharded


def net(units):
    """Return a module that FSDP2 gathers as one unit, or as three."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    if units == 1:
        return torch.nn.Sequential(*layers)

    class Block(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x)

    return torch.nn.Sequential(Block(layers[0]), Block(layers[2]), torch.nn.Linear(1, 1))


def rows():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(14, 4, generator=generator)
    return torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))


class Saving(Brain):
    """Saves with a metric at the end of each validation, as recipes do."""

    def compute_forward(self, batch, stage):
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        return torch.nn.functional.mse_loss(predictions, batch[1])

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage is Stage.VALID:
            self.checkpointer.save_and_keep_only(meta={"loss": stage_loss}, min_keys=["loss"])


class Forwarding(Saving):
    """Every hook runs a forward on all ranks and a state_dict on the main process alone."""

    def look(self):
        with torch.no_grad():
            self.modules.model(torch.ones(2, 4))
        if if_main_process():
            self.raw_modules.state_dict()

    def on_stage_start(self, stage, epoch=None):
        self.look()

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        self.look()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        super().on_stage_end(stage, stage_loss, epoch)
        self.look()


def train(rank, folder, units, options, kind="Saving", epochs=3):
    """Train, validate and save; return the weights, and whether a hook left the module gathered."""
    model = net(units)
    checkpointer = Checkpointer(folder, {"model": model})
    brain = globals()[kind](
        {"model": model},
        lambda p: torch.optim.AdamW(p, lr=0.01),
        run_opts={"device": "cpu", "parallel": "fsdp", **options},
        checkpointer=checkpointer,
    )
    kwargs = {"batch_size": 2}
    brain.fit(EpochCounter(epochs), rows(), rows(), None, {**kwargs, "shuffle": True}, kwargs)
    loss = brain.evaluate(rows(), min_key="loss", test_loader_kwargs=kwargs)
    gathered = not all(hasattr(p, "to_local") for p in model.parameters())
    checkpointer.close()
    weights = {name: t.tolist() for name, t in full_state_dict(model).items()}
    return weights, loss, gathered


@pytest.mark.parametrize(
    ("units", "options"),
    [
        (3, {"shard_evaluation": True, "ckpt_interval_steps": 2}),
        pytest.param(1, {"shard_evaluation": True}, marks=pytest.mark.long),
        pytest.param(1, {}, marks=pytest.mark.long),
        pytest.param(3, {}, marks=pytest.mark.long),
    ],
)
def test_fsdp_trains_on_after_a_validation_and_a_save(ranks, tmp_path, units, options):
    """The evaluation leaves the parameters sharded on both ranks, so the next step ends."""
    first, second = ranks(train, 2, tmp_path / "save", units, options)
    assert first == second
    assert not first[2]


def test_what_hooks_run_on_an_fsdp_module_changes_no_bit_of_the_training(ranks, tmp_path):
    """A forward on all ranks and a state_dict on one of them are undone before the next batch."""
    options = {"ckpt_interval_steps": 2}
    plain = ranks(train, 2, tmp_path / "plain", 1, options)
    looking = ranks(train, 2, tmp_path / "looking", 1, options, "Forwarding")
    assert [one[:2] for one in looking] == [one[:2] for one in plain]


def sharded_while_gathered(rank):
    """Return whether a module counts as sharded after a forward without a backward."""
    import brain_dist

    modules = {"model": net(1)}
    brain_dist.wrap_modules(modules, parallel="fsdp", device="cpu")
    found = [is_sharded(modules["model"])]
    with torch.no_grad():
        modules["model"](torch.ones(2, 4))
    found += [is_sharded(modules["model"]), hasattr(modules["model"][0].weight, "to_local")]
    brain_dist.reshard(modules)
    return [*found, hasattr(modules["model"][0].weight, "to_local")]


def test_a_module_that_is_gathered_for_now_still_counts_as_sharded(ranks):
    """A save then gathers on every rank; `reshard` makes the parameters shards again."""
    assert ranks(sharded_while_gathered, 2) == [[True, True, False, True]] * 2
