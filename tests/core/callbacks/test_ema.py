"""`EMA`: the average, its use in evaluations, and its checkpoints."""

from __future__ import annotations

import pytest
import torch

from brain_core import EMA, Stage
from brain_core.testing import assert_resumes_exactly


class Averaged:
    """A mixin that keeps all weights after each batch."""

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        state = self.modules.net.state_dict()
        self.__dict__.setdefault("history", []).append({k: v.clone() for k, v in state.items()})


def expected_average(first, history, decay, *, warmup=False):
    """Return the averages after each step, computed one number at a time."""
    average = {key: value.clone() for key, value in first.items()}
    for step, weights in enumerate(history, 1):
        d = min(decay, (1 + step) / (10 + step)) if warmup else decay
        for key, value in weights.items():
            if value.is_floating_point():
                average[key] = d * average[key] + (1 - d) * value
            else:
                average[key] = value.clone()
    return average


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_is_that_of_the_formula(net, fit_args, warmup):
    """Over all steps, for parameters and BatchNorm's statistics; its count is copied."""
    ema = EMA(0.9, warmup=warmup)
    brain = net.make(callbacks=[ema], cls=type("Kept", (Averaged, net.Net), {}))
    first = {k: v.clone() for k, v in brain.modules.net.state_dict().items()}
    brain.fit(**fit_args(range(2)))
    expected = expected_average(first, brain.history, 0.9, warmup=warmup)
    found = ema.state_dict()
    assert found["updates"] == 10
    assert found["average"].keys() == {f"net.{key}" for key in expected}
    for key, value in expected.items():
        torch.testing.assert_close(found["average"][f"net.{key}"], value, msg=key)


def test_a_step_that_was_skipped_does_not_move_the_average(make_scripted, numbers):
    """The average equals the weight that all other steps have not changed either."""
    from brain_core.callbacks.runner import CallbackRunner

    ema = EMA(0.5)
    brain = make_scripted()
    brain._callbacks = CallbackRunner([ema], brain)
    brain.fit(range(1), numbers(1.0, float("inf"), 2.0))
    assert ema.updates == 2
    assert ema.state_dict()["average"]["model.weight"].item() == 0.5 * (0.5 * -1.0) + 0.5 * -3.0


def test_validations_and_tests_use_the_average_and_hooks_the_weights(net, fit_args):
    """During the batches the modules hold the average; before and after them the weights."""
    ema, seen = EMA(0.9), {}

    class Looking(net.Net):
        def evaluate_batch(self, batch, stage):
            seen[stage] = self.modules.net[0].weight.clone()
            return super().evaluate_batch(batch, stage)

        def on_stage_end(self, stage, stage_loss, epoch=None):
            seen[f"after {stage.name}"] = self.modules.net[0].weight.clone()

    brain = net.make(callbacks=[ema], cls=Looking)
    brain.fit(**fit_args(range(1)))
    average = ema.state_dict()["average"]["net.0.weight"]
    weights = brain.modules.net[0].weight
    assert not torch.equal(average, weights)
    assert torch.equal(seen[Stage.VALID], average)
    assert torch.equal(seen["after VALID"], weights)
    brain.evaluate(net.rows(2))
    assert torch.equal(seen[Stage.TEST], average)
    assert torch.equal(seen["after TEST"], weights)


def test_the_weights_come_back_after_an_exception_in_a_validation(net, fit_args):
    """The modules hold the weights of the training, bit for bit."""
    held = []

    class Failing(net.Net):
        def on_stage_start(self, stage, epoch=None):
            held.append(self.modules.net[0].weight.clone())

        def evaluate_batch(self, batch, stage):
            raise RuntimeError("a fault")

    brain = net.make(callbacks=[EMA(0.9)], cls=Failing)
    with pytest.raises(RuntimeError, match="a fault"):
        brain.fit(**fit_args(range(1)))
    assert torch.equal(brain.modules.net[0].weight, held[-1])


def test_a_test_in_another_process_uses_the_best_checkpoints_average(net, fit_args, tmp_path):
    """It comes with the model; the loss is that of the validation at its end."""
    brain = net.make(tmp_path, [EMA(0.5)])
    brain.fit(**fit_args(range(1, 4)))
    best = min(c.meta["loss"] for c in brain.checkpointer.list_checkpoints())
    again = net.make(tmp_path, [EMA(0.5)])
    loss = again.evaluate(net.rows(4, seed=1), min_key="loss", test_loader_kwargs={"batch_size": 2})
    assert loss == best


@pytest.mark.parametrize("with_checkpoints", [True, False])
def test_training_goes_on_with_its_own_average_after_a_test_of_the_best(
    net, fit_args, tmp_path, with_checkpoints
):
    """Two fits with a test between them give the average of two fits without."""
    averages = []
    for name, tests in (("plain", False), ("tested", True)):
        ema = EMA(0.5)
        brain = net.make(tmp_path / name if with_checkpoints else None, [ema])
        brain.fit(**fit_args(range(1, 3)))
        if tests:
            brain.evaluate(net.rows(2), min_key="loss" if with_checkpoints else None)
        torch.manual_seed(2)  # a test draws from the generator
        brain.fit(**fit_args(range(1, 3)))
        averages.append(ema.state_dict()["average"])
    assert all(torch.equal(averages[0][key], averages[1][key]) for key in averages[0])


def test_after_a_test_of_the_best_an_unsaved_average_comes_back(net, fit_args, tmp_path):
    """The last epoch of the first fit is in no checkpoint."""
    ema = EMA(0.5)
    brain = net.make(tmp_path, [ema])
    brain.fit(**fit_args(range(1, 3)))
    brain.checkpointer, kept = None, brain.checkpointer
    brain.fit(**fit_args(range(1, 2)))
    brain.checkpointer = kept
    brain._run.batches_saved = -1
    before = {key: value.clone() for key, value in ema.state_dict()["average"].items()}
    brain.evaluate(net.rows(2), min_key="loss")
    assert not torch.equal(ema.state_dict()["average"]["net.0.weight"], before["net.0.weight"])
    brain.fit(**{**fit_args(range(0)), "valid_set": None})
    assert torch.equal(ema.state_dict()["average"]["net.0.weight"], before["net.0.weight"])


def test_averages_of_half_precision_are_kept_in_float32():
    """bfloat16 would lose the small changes of a large decay."""
    from brain_core import Brain

    class Half(Brain):
        def compute_forward(self, batch, stage):
            return self.modules.model(batch.bfloat16())

        def compute_objectives(self, predictions, batch, stage):
            return predictions.float().square().mean()

    ema = EMA(0.999)
    brain = Half(
        {"model": torch.nn.Linear(2, 1).bfloat16()},
        lambda parameters: torch.optim.SGD(parameters, lr=0.5),
        run_opts={"device": "cpu"},
        callbacks=[ema],
    )
    before = brain.modules.model.weight.detach().float().clone()
    brain.fit(range(1), list(torch.ones(4, 2)), list(torch.ones(1, 2)))
    average = ema.state_dict()["average"]["model.weight"]
    assert average.dtype is torch.float32
    assert not torch.equal(average, before)
    assert not torch.equal(average, average.bfloat16().float())
    assert brain.modules.model.weight.dtype is torch.bfloat16


def test_a_tensor_with_two_names_is_averaged_once():
    """Tied weights stay tied."""
    from brain_core import Brain

    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].weight = model[0].weight
    ema = EMA()
    ema.on_fit_start(Brain({"model": model}, run_opts={"device": "cpu"}), is_resumed=False)
    assert set(ema.state_dict()["average"]) == {"model.0.weight", "model.0.bias", "model.1.bias"}


def test_wrong_arguments_name_what_is_right(net, fit_args):
    """A decay, a module's name, a saved average of another shape."""
    with pytest.raises(ValueError, match=r"decay from 0 to below 1, such as 0.999, got 1.0"):
        EMA(1.0)
    with pytest.raises(ValueError, match=r"names of modules of the Brain \(net\), got \['nett'\]"):
        net.make(callbacks=[EMA(modules=["nett"])]).fit(**fit_args(range(1)))
    ema = EMA()
    ema.load_state_dict({"updates": 1, "average": {"net.0.weight": torch.zeros(2, 2)}})
    with pytest.raises(ValueError, match=r"net.0.weight, \(4, 3\), got \(2, 2\)"):
        net.make(callbacks=[ema]).fit(**fit_args(range(1)))


def test_a_killed_run_has_the_same_average(net, fit_args):
    """Killed inside an epoch, at its end, in a validation; saved in the background, too."""
    assert_resumes_exactly(
        lambda folder: net.make(folder, [EMA(0.9, warmup=True)], ckpt_interval_steps=2),
        lambda _: fit_args(range(1, 3)),
        kills=[3, 6, 9],
    )


@pytest.mark.long
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_is_killed_often_has_the_same_average(net, fit_args, ranks):
    """With accumulation, on one rank and on two."""
    assert_resumes_exactly(
        lambda folder: net.make(
            folder, [EMA(0.9)], ckpt_interval_steps=1, grad_accumulation_factor=2
        ),
        lambda _: fit_args(range(1, 4), count=24),
        kills=12,
        ranks=ranks,
        timeout_s=600,
    )
