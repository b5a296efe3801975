"""Errors for invalid recipes, and when they are raised."""

from __future__ import annotations

import pytest
import torch

from brain_core import Brain, Stage


def sgd(parameters):
    """Return an SGD optimizer."""
    return torch.optim.SGD(parameters, lr=0.1)


def test_a_missing_hparam_is_named_with_those_that_there_are(regression):
    """Python's traceback suggests the nearest one, for which it needs name and object."""
    brain = regression(hparams={"learning_rate": 0.1})
    message = r"hold 'lerning_rate' because the recipe reads it, but only learning_rate was given$"
    with pytest.raises(AttributeError, match=message) as caught:
        _ = brain.hparams.lerning_rate
    assert (caught.value.name, caught.value.obj) == ("lerning_rate", brain.hparams)


def test_a_missing_module_is_named_with_those_that_there_are(regression, pairs):
    """The error lists the modules of the Brain."""
    brain = regression({"modle": torch.nn.Linear(4, 2)}, sgd)
    with pytest.raises(AttributeError, match=r"'model'.*only modle was given$") as caught:
        brain.fit(range(1), pairs)
    assert (caught.value.name, caught.value.obj) == ("model", brain.modules)


def test_asking_for_an_optional_name_looks_for_no_other(regression, monkeypatch):
    """Recipes do so in each batch."""
    brain = regression(hparams={"learning_rate": 0.1})
    monkeypatch.delattr("difflib.get_close_matches")
    assert not hasattr(brain.hparams, "lerning_rate")
    assert getattr(brain.modules, "modle", None) is None


def test_an_object_that_is_not_a_module_is_refused(regression):
    """The error contains the name of the object."""
    with pytest.raises(TypeError, match=r"got 3 as 'model'\. Put anything else into hparams"):
        regression({"model": 3})


@pytest.mark.parametrize(
    ("make_loss", "message"),
    [
        (lambda p: p, r"a tensor of shape \(4, 2\). Reduce it, for instance by .mean\(\)"),
        (lambda p: p.detach().mean(), r"one without a gradient"),
        (lambda p: None, r"got None"),
        (lambda p: 0.5, r"got 0.5"),
    ],
)
def test_a_loss_that_cannot_be_trained_on_is_explained(regression, pairs, make_loss, message):
    """The error describes the loss; autograd's own error is its cause."""

    class Wrong(regression):
        def compute_objectives(self, predictions, batch, stage):
            return make_loss(predictions)

    brain = Wrong({"model": torch.nn.Linear(4, 2)}, sgd)
    with pytest.raises(ValueError, match=message):
        brain.fit(range(1), pairs, train_loader_kwargs={"batch_size": 4})


def test_an_unrelated_error_in_backward_is_raised_unchanged(regression, pairs):
    """An error in backward with a valid loss is not attributed to compute_objectives."""

    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("kernel failed")

    class Wrong(regression):
        def compute_objectives(self, predictions, batch, stage):
            return Failing.apply(predictions).mean()

    with pytest.raises(RuntimeError, match="kernel failed"):
        Wrong({"model": torch.nn.Linear(4, 2)}, sgd).fit(range(1), pairs)


@pytest.mark.parametrize("modules", [None, {"model": torch.nn.ReLU()}])
def test_an_optimizer_without_parameters_is_refused_before_training(regression, pairs, modules):
    """The error states which modules to give the Brain."""
    with pytest.raises(ValueError, match="at least one trainable parameter"):
        regression(modules, sgd).fit(range(1), pairs)


def test_trainable_parameters_without_an_optimizer_are_refused_before_training(regression, pairs):
    """The error names their modules; frozen ones need none."""
    frozen = torch.nn.Linear(4, 2).requires_grad_(requires_grad=False)
    modules = {"model": torch.nn.Linear(4, 2), "other": frozen}
    with pytest.raises(ValueError, match=r"parameters of model, got no opt_class\. Give Brain an"):
        regression(modules).fit(range(1), pairs)


@pytest.mark.parametrize("method", ["fit_batch", "init_optimizers", "on_fit_batch_end"])
def test_a_recipe_that_may_step_by_itself_needs_no_optimizer(regression, pairs, method):
    """What it does in a method of its own is not known."""

    def own(self, *args, **kwargs):
        return torch.zeros(())

    kind = type("Own", (regression,), {method: own})
    brain = kind({"model": torch.nn.Linear(4, 2)}, run_opts={"device": "cpu"})
    brain.fit(range(1), pairs)
    assert brain.current_epoch == 0


@pytest.mark.parametrize(
    ("make_class", "message"),
    [
        (sgd, r"an optimizer of class SGD\. Write .*: SGD\(param"),
        (lambda parameters: "Adam", r"got 'Adam'\. Write opt_class=torch\.optim\.Adam"),
    ],
)
def test_what_makes_no_optimizer_is_refused_as_opt_class(regression, make_class, message):
    """An optimizer that is made already belongs to parameters that may be moved or wrapped."""
    model = torch.nn.Linear(4, 2)
    with pytest.raises(TypeError, match=message):
        regression({"model": model}, make_class(model.parameters()))


@pytest.mark.parametrize("option", [{"resume_from": "step:4"}, {"mirror": "memory://runs/7"}])
def test_an_option_that_needs_a_checkpointer_is_refused_without_one(regression, pairs, option):
    """It would have no effect."""
    brain = regression({"model": torch.nn.Linear(4, 2)}, sgd, run_opts={"device": "cpu", **option})
    with pytest.raises(
        ValueError, match=rf"{next(iter(option))}=.* needs a checkpointer, got none"
    ):
        brain.fit(range(1), pairs)


@pytest.mark.parametrize("name", ["ckpt_interval_steps", "ckpt_interval_minutes"])
def test_an_interval_without_a_checkpointer_is_a_warning(regression, pairs, caplog, name):
    """Recipes have one in their hyperparameters; the warning says that nothing is saved."""
    brain = regression({"model": torch.nn.Linear(4, 2)}, sgd, {name: 5}, {"device": "cpu"})
    brain.fit(range(1), pairs)
    assert f"{name}=5 needs a checkpointer, got none." in caplog.text


def test_the_two_abstract_methods_raise_an_error(pairs):
    """The error contains the class and the signature to define."""
    from brain_core import Brain

    class Empty(Brain):
        pass

    brain = Empty({"model": torch.nn.Linear(4, 2)}, sgd)
    with pytest.raises(NotImplementedError, match=r"Empty must define compute_forward\(self"):
        brain.fit(range(1), pairs)
    with pytest.raises(NotImplementedError, match=r"compute_objectives\(self, predictions"):
        brain.compute_objectives(None, None, None)


def test_shuffle_and_a_sampler_exclude_each_other(regression, pairs):
    """The error is raised before an epoch begins."""
    brain = regression({"model": torch.nn.Linear(4, 2)}, sgd)
    kwargs = {"shuffle": True, "sampler": torch.utils.data.SequentialSampler(pairs)}
    with pytest.raises(ValueError, match="either shuffle=True or a sampler, got both"):
        brain.fit(range(1), pairs, train_loader_kwargs=kwargs)


@pytest.mark.parametrize("option", ["jit", "compile"])
def test_an_unknown_module_key_is_refused(regression, pairs, option):
    """The error lists the existing keys."""
    options = {option: True, f"{option}_module_keys": ["modle"], "device": "cpu"}
    brain = regression({"model": torch.nn.Linear(4, 2)}, sgd, run_opts=options)
    with pytest.raises(ValueError, match=r"\(model\), got 'modle'. Did you mean 'model'\?"):
        brain.fit(range(1), pairs)


def test_training_under_torchrun_requires_a_process_group(regression, monkeypatch):
    """Without a process group, every rank would train its own model."""
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"rank 1 of 2(.|\n)*ddp_init_group\(run_opts\)"):
        regression()


def test_an_error_in_evaluation_restores_training_mode_and_closes_the_bar(regression, pairs, capfd):
    """After an exception, only the modules that were in training mode return to it."""

    class Failing(regression):
        def evaluate_batch(self, batch, stage):
            raise OSError("disk")

    frozen = torch.nn.Dropout()
    frozen.eval()
    modules = {"model": torch.nn.Linear(4, 2), "frozen": frozen}
    brain = Failing(modules, sgd)
    brain.modules.train()
    frozen.eval()
    with pytest.raises(OSError, match="disk"):
        brain.evaluate(pairs, progressbar=True)
    assert brain.modules.model.training
    assert not frozen.training
    assert capfd.readouterr().err.endswith("\n")


@pytest.mark.parametrize("which", ["train", "valid"])
def test_a_set_that_gives_no_batch_is_refused_before_the_first_epoch(regression, pairs, which):
    """With its rows, its batch size and the number of ranks."""
    brain = regression({"model": torch.nn.Linear(4, 2)}, lambda p: torch.optim.SGD(p, lr=0.1))
    empty, full = {"batch_size": 30, "drop_last": True}, {"batch_size": 2}
    kwargs = {
        "train_loader_kwargs": empty if which == "train" else full,
        "valid_loader_kwargs": empty if which == "valid" else full,
    }
    message = (
        rf"{which}_set must give at least one batch on every rank, got 22 rows in batches of 30"
    )
    with pytest.raises(ValueError, match=message):
        brain.fit(range(1), pairs, pairs, **kwargs)
    assert brain.optimizer_step == 0


def test_lazy_parameters_are_refused_with_what_to_do(regression):
    """Before torch fails to count them."""
    lazy = torch.nn.Sequential(torch.nn.LazyLinear(2), torch.nn.LazyBatchNorm1d())
    with pytest.raises(ValueError, match=r"(?s)lazy ones: model.0.weight.*modules\['model'\]"):
        regression({"model": lazy}, sgd)
    lazy(torch.ones(3, 4))
    regression({"model": lazy}, sgd)


def test_an_optimizer_that_needs_a_closure_is_refused_with_the_lines_to_write(regression, pairs):
    """The lines are complete: with them, LBFGS trains."""
    modules = {"model": torch.nn.Linear(4, 2)}
    options = {"device": "cpu"}
    with pytest.raises(ValueError, match=r"LBFGS requires one\. Override fit_batch") as error:
        regression(modules, torch.optim.LBFGS, run_opts=options).fit(range(1), pairs)
    names = {"Regression": regression, "Stage": Stage}
    exec("class Closure(Regression):" + str(error.value).split("fit_batch:\n", 1)[1], names)
    brain = names["Closure"](modules, torch.optim.LBFGS, run_opts=options)
    batch = next(iter(torch.utils.data.DataLoader(pairs, batch_size=22)))
    before = brain.evaluate_batch(batch, Stage.VALID)
    brain.fit(range(3), pairs, train_loader_kwargs={"batch_size": 22})
    assert brain.evaluate_batch(batch, Stage.VALID) < 0.9 * before


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (lambda brain: brain.fit(5, [0]), r"got 5\. Write EpochCounter\(5\)"),
        (lambda brain: brain.fit(range(1), [0], None, {"batch_size": 2}), "train_loader_kwargs="),
    ],
)
def test_an_argument_in_the_wrong_place_is_refused_with_what_to_write(fit, message):
    """A number instead of epochs; a loader's arguments as the progress bar."""
    with pytest.raises(TypeError, match=message):
        fit(Brain())


def test_a_model_instead_of_a_dict_of_modules_is_refused():
    """The error shows the dict."""
    with pytest.raises(TypeError, match=r"got Linear\. Write modules="):
        Brain(torch.nn.Linear(1, 1))
