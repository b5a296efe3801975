"""Clipping, accumulation, and steps that are skipped."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from brain_core.loop.gradients import clip_gradients, split_vectors


def weight(brain):
    """Return the weight of a scripted Brain."""
    return brain.modules.model.weight.item()


def test_a_max_grad_norm_below_zero_clips_nothing(make_scripted, numbers):
    """A negative norm disables clipping; SpeechBrain 1.1 multiplied the gradient by it."""
    brain = make_scripted(max_grad_norm=-1)
    brain.fit(range(1), numbers(100.0))
    assert weight(brain) == -100.0


def test_the_norm_is_computed_over_all_parameter_groups(regression):
    """All groups are clipped by one norm; SpeechBrain 1.1 clipped only the group of vectors."""
    brain = regression(
        {"model": torch.nn.Linear(4, 2)},
        lambda groups: torch.optim.SGD(groups, lr=1.0),
        run_opts={"remove_vector_weight_decay": True, "max_grad_norm": 1.0, "device": "cpu"},
    )
    brain.init_optimizers()
    before = [p.detach().clone() for p in brain.modules.parameters()]
    for parameter in brain.modules.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    brain.optimizers_step()
    after = list(brain.modules.parameters())
    moved = torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)])
    assert moved.norm().item() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("share", [0.01, 0.89, 0.9, 0.95, 1 - 1e-7, 1.0, 1 + 1e-7, 1.1, 1e6])
def test_clipping_gives_the_bits_of_torch(share):
    """Whatever the norm is of the largest one allowed; of one dtype, and of several together."""
    generator = torch.Generator().manual_seed(0)
    dtypes = [[torch.float32], [torch.float64], [torch.bfloat16], [torch.float32, torch.float64]]
    for max_norm in (0.0, 1e-7, 1e-3, 5.0, 1e4):
        for number, chosen in enumerate(dtypes * 5):
            ours, theirs = [
                [
                    torch.nn.Parameter(torch.zeros(3, size, dtype=chosen[size % len(chosen)]))
                    for size in range(1, 2 + number)
                ]
                for _ in range(2)
            ]
            drawn = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in ours]
            scale = share * max_norm / torch.nn.utils.get_total_norm(drawn)
            for one, other, values in zip(ours, theirs, drawn, strict=True):
                one.grad = (values * scale).to(one.dtype)
                other.grad = one.grad.clone()
            expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
            assert torch.equal(clip_gradients(torch.optim.SGD(ours), max_norm), expected)
            assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))


def test_vectors_are_the_first_parameter_group():
    """The order of the groups is SpeechBrain's, so that its optimizer states can be loaded."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    module[1].bias.requires_grad_(requires_grad=False)
    vectors, others = split_vectors(module)
    assert [p.shape for p in vectors["params"]] == [(2,), (2,)]
    assert [p.shape for p in others["params"]] == [(2, 3)]
    assert vectors["weight_decay"] == 0.0


def test_a_short_last_window_is_averaged_over_its_own_batches(make_scripted, numbers):
    """With three batches and windows of two, the second step uses the third batch alone."""
    brain = make_scripted(grad_accumulation_factor=2)
    brain.fit(range(1), numbers(2.0, 4.0, 10.0))
    assert weight(brain) == -(3.0 + 10.0)
    assert brain.optimizer_step == 2


def test_the_last_window_of_a_loader_without_length_is_short(make_scripted):
    """The last window steps at the end of a loader that has no length."""

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from torch.tensor([2.0, 4.0, 10.0])

    brain = make_scripted(grad_accumulation_factor=2)
    brain.fit(range(1), torch.utils.data.DataLoader(Stream(), batch_size=1))
    assert (weight(brain), brain.optimizer_step) == (-13.0, 2)


def adamw(parameters):
    """Return an optimizer that changes parameters even if gradients are zero."""
    return torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_batch_that_is_not_finite_changes_nothing(make_scripted, numbers, bad):
    """A NaN or infinite loss changes no weight, no optimizer state and no mean.

    In SpeechBrain 1.1, weight decay and momentum still took a step.
    """
    states = []
    for values in ((1.0, 2.0, 3.0), (1.0, bad, 2.0, bad, 3.0)):
        brain = make_scripted(opt_class=adamw)
        losses = []
        brain.on_stage_end = lambda stage, loss, epoch, losses=losses: losses.append(loss)
        brain.fit(range(1), numbers(*values))
        states.append((weight(brain), losses, str(brain.optimizer.state_dict())))
    assert states[0] == states[1]


def test_an_infinite_gradient_of_a_finite_loss_changes_nothing(make_scripted, numbers):
    """The step is skipped; SpeechBrain 1.1 set the finite gradients to 0 and stepped."""

    class InfiniteSlope(type(make_scripted())):
        def compute_objectives(self, predictions, batch, stage):
            # The derivative of the square root at 0 is infinite.
            return torch.sqrt(predictions * 0) + predictions * 0 if batch.sum() < 0 else predictions

    brain = make_scripted(InfiniteSlope, opt_class=adamw)
    torch.nn.init.ones_(brain.modules.model.weight)
    brain.fit(range(1), numbers(-1.0))
    assert weight(brain) == 1.0
    assert brain.nonfinite_count == 1
    assert brain.optimizer.state_dict()["state"] == {}


def test_an_infinite_loss_with_finite_gradients_is_skipped(make_scripted, numbers):
    """A batch with an infinite loss is skipped even if its gradients are finite."""

    class Overflowing(type(make_scripted())):
        def compute_objectives(self, predictions, batch, stage):
            return predictions + (math.inf if batch.sum() < 0 else 0.0)

    brain = make_scripted(Overflowing)
    brain.fit(range(1), numbers(-1.0, 1.0))
    assert weight(brain) == -1.0


def test_a_window_with_one_nonfinite_batch_is_skipped_as_a_whole(make_scripted, numbers):
    """Gradients of a window are summed, so its finite batches are skipped, too."""
    brain = make_scripted(grad_accumulation_factor=2)
    brain.fit(range(1), numbers(1.0, math.nan, 3.0, 5.0))
    assert weight(brain) == -4.0
    assert brain.nonfinite_count == 1


def test_training_fails_with_advice_when_patience_is_exceeded(make_scripted, numbers):
    """The error contains advice, and only the finite batches have changed the weights."""
    brain = make_scripted(nonfinite_patience=2)
    with pytest.raises(ValueError, match=r"nonfinite_patience is 2(.|\n)*detect_anomaly"):
        brain.fit(range(1), numbers(1.0, math.nan, math.nan, 1.0, math.nan, 1.0))
    assert weight(brain) == -2.0


def test_patience_is_counted_per_epoch(make_scripted, numbers):
    """One nonfinite batch in each of three epochs does not exceed a patience of one."""
    brain = make_scripted(nonfinite_patience=1)
    brain.fit(range(3), numbers(1.0, math.nan))
    assert weight(brain) == -3.0


def test_each_skipped_step_is_logged(make_scripted, numbers, caplog):
    """The warning contains the batch and the remaining patience."""
    brain = make_scripted()
    with caplog.at_level(logging.WARNING):
        brain.fit(range(1), numbers(1.0, math.nan))
    assert "A loss of batch 2 is not finite: this step is skipped (1 of 3" in caplog.text


def test_skip_nonfinite_grads_steps_with_the_finite_gradients(regression, pairs, caplog):
    """Parameters with nonfinite gradients are named and not changed; all others are."""

    class HalfNonfinite(regression):
        def compute_objectives(self, predictions, batch, stage):
            loss = super().compute_objectives(predictions, batch, stage)
            self.modules.model.bias.register_hook(lambda g: g * math.nan)
            return loss

    model = torch.nn.Linear(4, 2)
    weight_before, bias_before = model.weight.detach().clone(), model.bias.detach().clone()
    brain = HalfNonfinite(
        {"model": model},
        lambda p: torch.optim.SGD(p, lr=0.1),
        run_opts={"skip_nonfinite_grads": True, "device": "cpu"},
    )
    with caplog.at_level(logging.WARNING):
        brain.fit(range(1), pairs, train_loader_kwargs={"batch_size": 22})
    assert torch.equal(model.bias, bias_before)
    assert not torch.equal(model.weight, weight_before)
    assert torch.isfinite(model.weight).all()
    assert "model.bias" in caplog.text


def test_an_override_of_check_gradients_may_repair_them(make_scripted, numbers):
    """The optimizer steps with gradients that the override makes finite."""

    class Repairing(type(make_scripted())):
        def check_gradients(self):
            for parameter in self.modules.parameters():
                parameter.grad = torch.nan_to_num(parameter.grad, nan=0.5)

    brain = make_scripted(Repairing, skip_nonfinite_grads=True)
    brain.fit(range(1), numbers(math.nan))
    assert weight(brain) == -0.5


def test_the_mean_is_over_the_finite_losses(make_scripted, numbers):
    """The mean loss of [1, nan, 3] is 2; in SpeechBrain 1.1 it was 1.667."""
    means = []
    brain = make_scripted(opt_class=lambda p: torch.optim.SGD(p, lr=0.0))
    brain.on_stage_end = lambda stage, loss, epoch: means.append(loss)
    brain.fit(range(1), numbers(1.0, math.nan, 3.0), numbers(1.0, math.nan, 3.0))
    assert means == [2.0, 2.0]


def test_an_override_of_update_average_determines_the_mean(make_scripted, numbers):
    """The override gets each loss, and the inherited method skips nonfinite losses."""
    given = []

    class Averaging(type(make_scripted())):
        def update_average(self, loss, avg_loss):
            given.append(float(loss))
            return super().update_average(loss, avg_loss)

    means = []
    brain = make_scripted(Averaging, opt_class=lambda p: torch.optim.SGD(p, lr=0.0))
    brain.on_stage_end = lambda stage, loss, epoch: means.append(loss)
    brain.fit(range(1), numbers(1.0, math.nan, 3.0), numbers(5.0))
    assert means == [2.0, 5.0]
    assert given[::2] == [1.0, 3.0]


def test_no_sync_ends_after_an_exception(make_scripted, numbers):
    """The context is closed; in SpeechBrain 1.1 gradients stayed unsynchronized."""
    brain = make_scripted(grad_accumulation_factor=2)
    entered = []

    class Context:
        def __enter__(self):
            entered.append("in")

        def __exit__(self, *exception):
            entered.append("out")

    brain.no_sync = lambda use=True: Context()
    brain.compute_objectives = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        brain.fit(range(1), numbers(1.0))
    assert entered == ["in", "out"]


def sparse_and_dense(regression, opt_class, **run_opts):
    """Return the weights of the same training with sparse and with dense gradients."""
    weights = []
    for sparse in (True, False):
        torch.manual_seed(1)
        table = torch.nn.Embedding(12, 3, sparse=sparse)
        model = torch.nn.Sequential(table, torch.nn.Flatten(), torch.nn.Linear(12, 2))
        rows = [(torch.randint(0, 12, (4,)), 10 * torch.randn(2)) for _ in range(20)]
        brain = regression({"model": model}, opt_class, run_opts={"device": "cpu", **run_opts})
        brain.fit(range(2), rows, train_loader_kwargs={"batch_size": 4})
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    return weights


@pytest.mark.parametrize("max_grad_norm", [-1, 0.5, 1000.0])
@pytest.mark.parametrize("opt_class", [torch.optim.SGD, torch.optim.Adagrad])
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_sparse_gradients_are_clipped_as_dense_ones(regression, max_grad_norm, opt_class):
    """An embedding with sparse=True beside dense parameters, in one norm."""
    sparse, dense = sparse_and_dense(
        regression,
        lambda p: opt_class(p, lr=0.01),
        max_grad_norm=max_grad_norm,
        grad_accumulation_factor=2,
    )
    assert torch.allclose(sparse, dense, rtol=1e-5, atol=1e-7)


def test_a_sparse_gradient_with_nan_is_found_and_dropped(regression, caplog):
    """By its values; the dense parameters step."""
    table = torch.nn.Embedding(4, 2, sparse=True)
    brain = regression(
        {"table": table, "model": torch.nn.Linear(4, 2)},
        lambda p: torch.optim.SGD(p, lr=1.0),
        run_opts={"device": "cpu", "skip_nonfinite_grads": True},
    )
    brain.init_optimizers()
    before = table.weight.detach().clone()
    (table(torch.tensor([1, 1])) * math.nan).sum().backward()
    brain.modules.model(torch.ones(1, 4)).sum().backward()
    bias = brain.modules.model.bias.detach().clone()
    brain.optimizers_step()
    assert "table.weight" in caplog.text
    assert torch.equal(table.weight, before)
    assert not torch.equal(brain.modules.model.bias, bias)
