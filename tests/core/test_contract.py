"""The interface of recipes: names, signatures, and the order of the hooks."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest
import torch

import brain_core
from brain_core import Brain, Stage, create_experiment_directory

# SpeechBrain's documentation: method -> parameters, with "=" for a default.
SIGNATURES = {
    "__init__": "modules= opt_class= hparams= run_opts= checkpointer= callbacks=",  # by name only
    "compute_forward": "batch stage",
    "compute_objectives": "predictions batch stage",
    "on_stage_start": "stage epoch=",
    "on_stage_end": "stage stage_loss epoch=",
    "make_dataloader": "dataset stage ckpt_prefix= **loader_kwargs",
    "on_fit_start": "",
    "init_optimizers": "",
    "zero_grad": "set_to_none=",
    "on_evaluate_start": "max_key= min_key=",
    "fit_batch": "batch",
    "check_loss_isfinite": "loss",
    "check_gradients": "",
    "freeze_optimizers": "optimizers",
    "optimizers_step": "",
    "on_fit_batch_start": "batch should_step",
    "on_fit_batch_end": "batch outputs loss should_step",
    "evaluate_batch": "batch stage",
    "fit": "epoch_counter train_set valid_set= progressbar= train_loader_kwargs= "
    "valid_loader_kwargs=",
    "loss_weight": "batch",
    "evaluate": "test_set max_key= min_key= progressbar= test_loader_kwargs=",
    "update_average": "loss avg_loss",
    "no_sync": "use=",
    "_fit_train": "train_set epoch enable",
    "_fit_valid": "valid_set epoch enable",
}
DEFAULTS = {
    ("__init__", "callbacks"): (),
    ("make_dataloader", "ckpt_prefix"): "dataloader-",
    ("zero_grad", "set_to_none"): False,
    ("no_sync", "use"): True,
    ("fit", "train_loader_kwargs"): {},
    ("fit", "valid_loader_kwargs"): {},
    ("evaluate", "test_loader_kwargs"): {},
}
MARKS = {inspect.Parameter.VAR_KEYWORD: "**"}


def spell(function):
    """Return a signature in the form of `SIGNATURES`."""
    parameters = list(inspect.signature(function).parameters.values())
    return " ".join(
        f"{MARKS.get(p.kind, '')}{p.name}{'' if p.default is p.empty else '='}"
        for p in parameters
        if p.name != "self"
    )


@pytest.mark.parametrize("method", SIGNATURES)
def test_every_method_has_speechbrains_signature(method):
    """A call that is valid for SpeechBrain's Brain is valid for this one."""
    assert spell(getattr(Brain, method)) == SIGNATURES[method]


def test_every_default_is_speechbrains():
    """A default that is not in `DEFAULTS` is None."""
    for method in SIGNATURES:
        for p in inspect.signature(getattr(Brain, method)).parameters.values():
            if p.default is not p.empty:
                assert p.default == DEFAULTS.get((method, p.name)), (method, p.name)


def test_create_experiment_directory_has_speechbrains_arguments():
    """Arguments may be given by position and by name."""
    assert spell(create_experiment_directory).startswith(
        "experiment_directory hyperparams_to_save= overrides= log_config= save_env_desc="
    )


def test_stages_have_speechbrains_values():
    """Stages are pickled by value, so the values must be the same."""
    assert [(s.name, s.value) for s in Stage] == [("TRAIN", 1), ("VALID", 2), ("TEST", 3)]


def test_the_documented_examples_run():
    """Every example in a docstring of brain_core passes."""
    tried = 0
    for module in pkgutil.iter_modules(brain_core.__path__, "brain_core."):
        result = doctest.testmod(importlib.import_module(module.name))
        assert result.failed == 0, module.name
        tried += result.attempted
    assert tried > 10


HOOKS = [name for name in SIGNATURES if not name.startswith("_") and name != "fit"]


def recording(base):
    """Return a subclass that records the names of the called hooks in ``calls``."""

    def wrap(name):
        def method(self, *args, **kwargs):
            self.calls.append(name)
            return getattr(base, name)(self, *args, **kwargs)

        return method

    own = {name: wrap(name) for name in HOOKS if name != "no_sync"}
    return type("Recording", (base,), {name: own[name] for name in own if name != "__init__"})


@pytest.fixture
def recorded(regression, pairs):
    """Return a function that trains a recording Brain and returns it."""

    def train(batches=1, **run_opts):
        brain = recording(regression)(
            {"model": torch.nn.Linear(4, 2)},
            lambda p: torch.optim.SGD(p, lr=0.1),
            run_opts={"device": "cpu", **run_opts},
        )
        brain.calls = []
        some = torch.utils.data.Subset(pairs, range(batches))
        brain.fit(range(1), some, torch.utils.data.DataLoader(torch.utils.data.Subset(pairs, [0])))
        return brain

    return train


def test_the_docstring_of_fit_lists_the_hooks_in_order(recorded):
    """A run of one epoch with one batch calls the listed hooks in that order."""
    listed = re.findall(r"^ +(\w+)", inspect.getdoc(Brain.fit).split("::\n")[1], re.MULTILINE)
    expected = [word for word in listed if word in HOOKS]
    assert recorded(skip_nonfinite_grads=True).calls == expected


def test_the_optimizers_step_on_each_full_window_and_on_the_last_batch(recorded):
    """The last window of an epoch steps, too; SpeechBrain 1.1 dropped its gradients."""
    calls = recorded(batches=7, grad_accumulation_factor=4).calls
    training = calls[: calls.index("evaluate_batch")]
    steps = [name for name in training if name in ("fit_batch", "optimizers_step")]
    assert "".join("b" if name == "fit_batch" else "S" for name in steps) == "bbbbSbbbS"


def test_a_subclass_can_override_the_whole_step(regression, pairs):
    """A GAN can override fit_batch and step two optimizers itself."""

    class Adversarial(regression):
        def init_optimizers(self):
            self.optimizer_g = torch.optim.SGD(self.modules.model.parameters(), lr=0.1)
            self.optimizers_dict = {"g": self.optimizer_g}

        def fit_batch(self, batch):
            loss = self.compute_objectives(self.compute_forward(batch, None), batch, None)
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimizer_g)
            self.scaler.step(self.optimizer_g)
            self.scaler.update()
            self.optimizer_g.zero_grad()
            return loss.detach().cpu()

    model = torch.nn.Linear(4, 2)
    before = model.weight.detach().clone()
    brain = Adversarial({"model": model}, run_opts={"device": "cpu"})
    brain.fit(range(1), pairs, train_loader_kwargs={"batch_size": 4})
    assert not torch.equal(model.weight, before)
    assert brain.optimizer_step == 0


def test_a_recipe_that_sets_only_self_optimizer_trains(regression, pairs):
    """Training needs neither opt_class nor optimizers_dict."""

    class Older(regression):
        def init_optimizers(self):
            self.optimizer = torch.optim.SGD(self.modules.parameters(), lr=0.1)

    model = torch.nn.Linear(4, 2)
    before = model.weight.detach().clone()
    brain = Older({"model": model}, run_opts={"device": "cpu"})
    brain.fit(range(1), pairs)
    assert not torch.equal(model.weight, before)
    assert brain.optimizer_step == len(pairs)


def test_a_frozen_optimizer_neither_steps_nor_is_zeroed(regression, pairs):
    """Only the optimizers that freeze_optimizers returns step and are zeroed."""

    class Frozen(regression):
        def init_optimizers(self):
            self.optimizers_dict = {
                name: torch.optim.SGD(self.modules[name].parameters(), lr=0.1)
                for name in ("model", "other")
            }

        def freeze_optimizers(self, optimizers):
            return {"model": optimizers["model"]}

    modules = {name: torch.nn.Linear(4, 2) for name in ("model", "other")}
    before = {name: m.weight.detach().clone() for name, m in modules.items()}
    Frozen(modules, run_opts={"device": "cpu"}).fit(range(1), pairs)
    changed = [name for name, m in modules.items() if not torch.equal(m.weight, before[name])]
    assert changed == ["model"]


def test_attributes_that_a_recipe_assigns_are_kept(regression):
    """A recipe may assign train_sampler, optimizer_step, avg_train_loss and max_grad_norm."""
    brain = regression()
    for name, value in {
        "train_sampler": object(),
        "optimizer_step": 7,
        "nonfinite_count": 2,
        "avg_train_loss": 0.25,
        "max_grad_norm": 3.0,
    }.items():
        setattr(brain, name, value)
        assert getattr(brain, name) == value


def test_set_epoch_of_a_users_train_sampler_is_called(regression, pairs):
    """set_epoch is called for each epoch, as SpeechBrain documents for make_dataloader."""

    class Sampler:
        def __init__(self):
            self.epochs = []

        def set_epoch(self, epoch):
            self.epochs.append(epoch)

    brain = regression({"model": torch.nn.Linear(4, 2)}, torch.optim.SGD)
    loader = torch.utils.data.DataLoader(pairs)
    brain.train_sampler = sampler = Sampler()
    brain.fit(range(2), loader)
    assert sampler.epochs == [0, 1]


def test_the_callers_loader_arguments_are_not_modified(regression, pairs):
    """The dict is unchanged; SpeechBrain 1.1 wrote ckpt_prefix into it."""
    train, valid, test = {"shuffle": True}, {"batch_size": 2}, {"batch_size": 3}
    brain = regression({"model": torch.nn.Linear(4, 2)}, lambda p: torch.optim.SGD(p, lr=0.1))
    brain.fit(range(1), pairs, pairs, train_loader_kwargs=train, valid_loader_kwargs=valid)
    brain.evaluate(pairs, test_loader_kwargs=test)
    assert (train, valid, test) == ({"shuffle": True}, {"batch_size": 2}, {"batch_size": 3})


def test_a_ckpt_prefix_for_validation_is_accepted(regression, pairs):
    """valid_loader_kwargs may contain ckpt_prefix; in SpeechBrain 1.1 it raised a TypeError."""
    brain = regression({"model": torch.nn.Linear(4, 2)}, lambda p: torch.optim.SGD(p, lr=0.1))
    brain.fit(range(1), pairs, pairs, valid_loader_kwargs={"ckpt_prefix": "valid-"})
    assert brain.optimizer_step == len(pairs)


def test_test_only_skips_training(regression, pairs):
    """With test_only, fit returns at once, and evaluate works."""
    model = torch.nn.Linear(4, 2)
    before = model.weight.detach().clone()
    brain = regression(
        {"model": model}, lambda p: torch.optim.SGD(p, lr=0.1), run_opts={"test_only": True}
    )
    brain.fit(range(1), pairs)
    assert torch.equal(model.weight, before)
    assert brain.evaluate(pairs) > 0


def test_dynamic_batches_differ_between_epochs_in_one_process(regression, pairs):
    """set_epoch of the batch sampler is called; in SpeechBrain 1.1 it was not."""
    from brain_data import DynamicBatchSampler

    sampler = DynamicBatchSampler(
        pairs, 40, num_buckets=3, lengths_list=[1 + i % 9 for i in range(22)]
    )
    brain = regression({"model": torch.nn.Linear(4, 2)}, lambda p: torch.optim.SGD(p, lr=0.0))
    epochs = []
    brain.on_stage_start = lambda stage, epoch: epochs.append([])
    brain.on_fit_batch_start = lambda batch, _: epochs[-1].append(batch[0].sum(1).tolist())
    brain.fit(range(1, 4), pairs, train_loader_kwargs={"batch_sampler": sampler})
    rows = [sorted(value for batch in epoch for value in batch) for epoch in epochs]
    assert rows[0] == rows[1] == rows[2]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
