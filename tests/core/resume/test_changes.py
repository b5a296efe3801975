"""What becomes of a run whose script is changed between stop and start: the table of the docs."""

from __future__ import annotations

import contextlib
import logging
import re

import pytest
import torch

from brain_ckpt import Checkpointer, CheckpointMismatchError
from brain_core import Brain, EpochCounter


class Stopped(BaseException):
    """Stands for SIGKILL."""


class Net(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.encoder = torch.nn.Linear(4, width)
        self.head = torch.nn.Linear(width, 1)

    def forward(self, x):
        return self.head(self.encoder(x).tanh())


class Run(Brain):
    """Notes the rows of each batch."""

    stop_at = None

    def compute_forward(self, batch, stage):
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        return torch.nn.functional.mse_loss(predictions, batch[1])

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        self.hparams.seen.append(batch[0][:, 0].tolist())
        if len(self.hparams.seen) == self.stop_at:
            raise Stopped


def sgd(parameters, lr):
    return torch.optim.SGD(parameters, lr=lr)


def adam(parameters, lr):
    return torch.optim.AdamW(parameters, lr=lr)


def adam_of_trainable(parameters, lr):
    return torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=lr)


def run(folder, *, stop_at=None, **script):
    """Run a script of ten batches an epoch, with a checkpoint after every third one."""
    torch.manual_seed(0)
    model = Net(script.get("width", 6))
    model.encoder.requires_grad_(requires_grad=not script.get("frozen", False))
    rows = script.get("rows", 20)
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(1))
    recoverables = {script.get("name", "model"): model}
    recoverables |= {name: torch.nn.Linear(1, 1) for name in script.get("others", ())}
    counter = EpochCounter(script.get("epochs", 2))
    checkpointer = Checkpointer(folder, {**recoverables, "counter": counter})
    make, lr = script.get("optimizer", adam), script.get("lr", 0.05)
    options = {"device": "cpu", "ckpt_interval_steps": 3, "recover_attributes": False}
    options |= script.get("options", {})
    brain = Run({"model": model}, lambda ps: make(ps, lr), {"seen": []}, options, checkpointer)
    brain.stop_at = stop_at
    loading = {"batch_size": 2, "shuffle": True, **script.get("loading", {})}
    with contextlib.suppress(Stopped):
        brain.fit(
            counter,
            torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True)),
            train_loader_kwargs=loading,
        )
    checkpointer.close()
    return brain, torch.cat([p.detach().flatten() for p in model.parameters()])


def line_of(caplog):
    """Return the line of the resumed run."""
    (line,) = [m for m in caplog.messages if m.startswith("Resuming from")]
    return line


@pytest.fixture
def stopped(tmp_path):
    """Return a folder with a run that was stopped after batch 4 of 10, saved at batch 3."""
    run(tmp_path / "save", stop_at=4)
    return tmp_path / "save"


@pytest.mark.parametrize(
    "script",
    [{}, {"loading": {"num_workers": 2}}, {"epochs": 3}],
    ids=["nothing", "workers", "epochs"],
)
def test_these_changes_leave_every_bit(stopped, tmp_path, caplog, script):
    """The number of workers and of epochs decide nothing that was computed."""
    _, undisturbed = run(tmp_path / "undisturbed", **script)
    with caplog.at_level(logging.INFO):
        caplog.clear()
        _, resumed = run(stopped, **script)
    assert torch.equal(resumed, undisturbed)
    assert "The run continues bit for bit." in line_of(caplog)


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ({"options": {"precision": "bf16"}}, "precision fp32 -> bf16"),
        ({"options": {"grad_accumulation_factor": 2}}, "grad_accumulation_factor 1 -> 2"),
        ({"options": {"max_grad_norm": 0.1}}, "max_grad_norm 5.0 -> 0.1"),
        ({"frozen": True}, "frozen model.encoder.weight, model.encoder.bias"),
        ({"lr": 0.01}, "lr of optimizer 0.05 -> 0.01 (not used; To resume"),
    ],
)
def test_these_changes_are_said(stopped, caplog, script, says):
    """The run continues, and its line is a warning that names the change."""
    caplog.clear()
    run(stopped, **script)
    line = line_of(caplog)
    assert says in line
    assert "bit for bit" not in line


@pytest.mark.parametrize(
    ("script", "says", "kind"),
    [
        ({"loading": {"batch_size": 4}}, "batch size 2 -> 4", "data"),
        ({"rows": 26}, "rows 20 -> 26", "data"),
        ({"loading": {"shuffle": False}}, "ReproducibleRandomSampler -> SequentialSampler", "data"),
        ({"optimizer": sgd}, "optimizer AdamW -> SGD", "optimizer"),
        ({"width": 7}, r"'encoder.weight' of shape \(6, 4\)", "modules"),
        ({"others": ("new",)}, "got none for 'new'", "modules"),
        ({"name": "net"}, "got none for 'net'", "modules"),
    ],
)
def test_these_changes_stop_before_the_first_batch(stopped, tmp_path, caplog, script, says, kind):
    """The error names the change and a run option, with which the run then resumes.

    Started once more with the same option, it resumes like any other run.
    """
    with pytest.raises(CheckpointMismatchError, match=says) as raised:
        run(stopped, **script)
    assert f"write --accept_changes={kind}" in str(raised.value)
    options = {"accept_changes": [kind]}
    caplog.clear()
    brain, _ = run(stopped, stop_at=8, **script, options=options)
    assert brain.hparams.seen
    assert "bit for bit" not in line_of(caplog)
    with caplog.at_level(logging.INFO):
        caplog.clear()
        run(stopped, **script, options=options)
    assert "The run continues bit for bit." in line_of(caplog)


def test_other_batches_start_the_epoch_again_with_the_weights_so_far(stopped, caplog):
    """All rows of the epoch are seen, in batches of the new size."""
    caplog.clear()
    brain, _ = run(
        stopped, loading={"batch_size": 4}, epochs=1, options={"accept_changes": ["data"]}
    )
    assert [len(batch) for batch in brain.hparams.seen] == [4] * 5
    assert len({row for batch in brain.hparams.seen for row in batch}) == 20
    assert brain.optimizer_step == 3 + 5
    assert "batch size 2 -> 4, the loader starts at the first batch" in line_of(caplog)


def test_at_the_end_of_an_epoch_other_batches_need_no_option(tmp_path, caplog):
    """No position is lost; the line says what was changed."""
    run(tmp_path, epochs=1)
    caplog.clear()
    brain, _ = run(tmp_path, loading={"batch_size": 4})
    assert [len(batch) for batch in brain.hparams.seen] == [4] * 5
    assert "batch size 2 -> 4" in line_of(caplog)


def test_a_learning_rate_counts_if_it_is_accepted(stopped, caplog):
    """It is the script's from the first batch on, and still is after the next resume."""
    options = {"accept_changes": ["optimizer_options"]}
    brain, _ = run(stopped, stop_at=4, lr=0.01, options=options)
    assert brain.optimizer.param_groups[0]["lr"] == 0.01
    caplog.clear()
    brain, _ = run(stopped, lr=0.01, options=options)
    assert brain.optimizer.param_groups[0]["lr"] == 0.01
    assert "lr of" not in line_of(caplog) if caplog.messages else True


def test_a_rate_that_a_scheduler_has_lowered_is_scaled(tmp_path):
    """Half of the first rate becomes half of the new one, and the schedule goes on from it."""

    class Scheduled(Run):
        def init_optimizers(self):
            super().init_optimizers()
            self.scheduler = torch.optim.lr_scheduler.LambdaLR(
                self.optimizer, lambda step: 0.5 if step >= 2 else 1.0
            )

        def on_fit_batch_end(self, batch, outputs, loss, should_step):
            self.scheduler.step()
            self.hparams.rates.append(self.optimizer.param_groups[0]["lr"])
            if len(self.hparams.rates) == self.stop_at:
                raise Stopped

    def scheduled(lr, stop_at, **options):
        torch.manual_seed(0)
        brain = Scheduled(
            {"model": Net(2)},
            lambda ps: torch.optim.SGD(ps, lr=lr),
            {"rates": []},
            {"device": "cpu", "ckpt_interval_steps": 3, "recover_attributes": False, **options},
            Checkpointer(tmp_path),
        )
        brain.stop_at = stop_at
        x = torch.ones(16, 4)
        try:
            brain.fit(range(1), torch.utils.data.TensorDataset(x, x[:, :1]))
        except Stopped:
            brain.checkpointer.close()
        return brain.hparams.rates

    assert scheduled(0.1, 4)[-1] == 0.05
    assert scheduled(0.2, 2, accept_changes=True) == [0.1, 0.1]


def test_a_layer_of_another_shape_keeps_its_first_weights_and_the_others_load(stopped, caplog):
    """Only what fits is loaded, and the warning says what does not."""
    before = torch.load(
        Checkpointer(stopped).find_checkpoint().paramfiles["model"], weights_only=True
    )
    brain, _ = run(stopped, stop_at=1, width=7, lr=0.0, options={"accept_changes": ["modules"]})
    assert torch.equal(brain.modules.model.head.bias, before["head.bias"])
    assert re.search("Loaded 1 of 4 parameters and buffers of Net", caplog.text)


def test_a_recoverable_that_is_no_longer_there_is_said(tmp_path, caplog):
    """Its state is not loaded."""
    run(tmp_path, stop_at=4, others=("old",))
    caplog.clear()
    run(tmp_path)
    assert "old of the checkpoint not loaded" in line_of(caplog)


def test_a_module_frozen_by_the_script_stays_frozen(stopped):
    """The script's flags count, not those of the run before it was changed."""
    saved = torch.load(
        Checkpointer(stopped).find_checkpoint().paramfiles["model"], weights_only=True
    )
    brain, _ = run(stopped, frozen=True, optimizer=adam_of_trainable)
    assert torch.equal(brain.modules.model.encoder.weight, saved["encoder.weight"])
    assert not torch.equal(brain.modules.model.head.weight, saved["head.weight"])


def test_a_kind_of_change_that_does_not_exist_is_refused(tmp_path):
    """The error lists those that do."""
    with pytest.raises(ValueError, match=r"data, modules, optimizer, optimizer_options, got 'dat'"):
        run(tmp_path, options={"accept_changes": ["dat"]})
