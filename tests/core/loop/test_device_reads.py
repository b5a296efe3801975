"""How often training waits for a device, counted on the CPU.

The losses are taken for those of an accelerator, so that the loop does what it does there, and each
operation that would wait for one is counted: what reads a tensor's values, or finds its size from
them. Counted is from the start of a batch to the start of the next one, with all that the loop does
in between. On a GPU, `tests/core/test_cuda.py` counts what CUDA itself reports.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from brain_ckpt import Checkpointer
from brain_core import Brain
from brain_core.loop import gradients, progress_bar, running_mean, train_step
from brain_core.loop.late_copy import LateCopy

_OPERATIONS = {
    "aten::_local_scalar_dense",  # item(), and with it bool(), float(), int()
    "aten::_unique2",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
}
_METHODS = ("cpu", "numpy", "tolist")  # on the CPU, torch dispatches no operation for them


class Reads(TorchDispatchMode):
    """Counts what would wait for a device, by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in _OPERATIONS:
            self.counts[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def reads(monkeypatch):
    """Return a counter of reads, with the losses taken for those of an accelerator."""
    found = Reads()

    def counting(name):
        original = getattr(torch.Tensor, name)

        def method(self, *args, **kwargs):
            if name != "tolist" or self.dim():  # tolist() of a scalar is an item(), counted above
                found.counts[name] += 1
            return original(self, *args, **kwargs)

        return method

    read = LateCopy.read

    def read_from_pinned_memory(self):
        counted = found.counts.copy()
        with _disable_current_modes():
            numbers = read(self)
        found.counts = counted
        return numbers

    for name in _METHODS:
        monkeypatch.setattr(torch.Tensor, name, counting(name))
    monkeypatch.setattr(LateCopy, "read", read_from_pinned_memory)
    take_for_an_accelerator(monkeypatch)
    return found


def take_for_an_accelerator(monkeypatch):
    """Let the loop handle losses as it does where reading them waits for a device."""
    for module in (gradients, running_mean, train_step):
        monkeypatch.setattr(module, "reads_at_once", lambda loss: False)


class Regression(Brain):
    """A regression that notes the number of reads at each batch's start."""

    reads = None

    def compute_forward(self, batch, stage):
        self.note(stage.name)
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        return torch.nn.functional.mse_loss(predictions.float(), batch[1])

    def note(self, stage):
        if self.reads is not None:
            self.noted.setdefault(stage, []).append(self.reads.counts.total())

    def per_batch(self, stage="TRAIN"):
        """Return the reads of each batch but the first, which makes ready, and the last."""
        noted = self.noted[stage]
        return [after - before for before, after in pairwise(noted[1:])]


class Batches:
    """Batches as a loader gives them: to be iterated over, not indexed."""

    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __iter__(self):
        return iter(self.pairs)


def batches(count=8, bad=()):
    """Return batches of 4 rows; those in ``bad`` are NaN."""
    generator = torch.Generator().manual_seed(7)
    pairs = [
        (torch.randn(4, 8, generator=generator), torch.randn(4, 2, generator=generator))
        for _ in range(count)
    ]
    for number in bad:
        pairs[number][0].fill_(math.nan)
    return Batches(pairs)


def sgd(parameters):
    """Return an optimizer with a state."""
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def make(cls=Regression, opt_class=sgd, checkpointer=None, **options):
    """Return a Brain with a small model, which has buffers."""
    torch.manual_seed(3)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 2)
    )
    options = {"device": "cpu", **options}
    return cls({"model": model}, opt_class, run_opts=options, checkpointer=checkpointer)


def count(brain, reads, valid=None, *, bar=False, size=8):
    """Train for an epoch and return the reads of each batch but the first and the last."""
    brain.reads, brain.noted = reads, {}
    with reads:
        brain.fit(range(1), batches(size), valid, progressbar=bar)
    return brain.per_batch()


def fused(parameters):
    """Return an optimizer that is one operation of torch."""
    return torch.optim.AdamW(parameters, lr=0.01, fused=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_grad_norm": -1},
        {"precision": "bf16"},
        {"nonfinite_patience": 0},
    ],
    ids=lambda options: "".join(options) or "defaults",
)
def test_a_step_reads_once_whether_its_gradients_are_finite(reads, options):
    """The mean loss, clipping and the check of the losses add no read."""
    assert count(make(**options), reads) == [1] * 6


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": -1}, {"precision": "bf16"}], ids=str)
def test_a_step_of_a_fused_optimizer_reads_nothing(reads, options):
    """It leaves out a step by a flag that it finds on the device."""
    assert count(make(opt_class=fused, **options), reads) == [0] * 6


def test_a_fused_step_with_momentum_reads_once(reads):
    """Left out, torch's first one would leave memory that was never written as the momentum."""
    brain = make(opt_class=lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, fused=True))
    assert count(brain, reads) == [1] * 6


def test_a_step_with_an_interval_for_checkpoints_reads_once(reads, tmp_path):
    """Whether a save or a stop is due needs no value of a device."""
    brain = make(checkpointer=Checkpointer(tmp_path), ckpt_interval_minutes=15)
    rows = torch.utils.data.TensorDataset(torch.randn(32, 8), torch.randn(32, 2))
    brain.reads, brain.noted = reads, {}
    with reads:
        brain.fit(range(1), rows, progressbar=False, train_loader_kwargs={"batch_size": 4})
    assert brain.per_batch() == [1] * 6


def test_only_the_last_batch_of_a_window_reads(reads):
    """With windows of four batches, the other three need no read, from the second window on."""
    brain = make(grad_accumulation_factor=4)
    count(brain, reads, size=12)
    assert brain.per_batch()[3:] == [0, 0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("interval", [3600, 0])
def test_a_bar_adds_no_read(reads, monkeypatch, interval):
    """Between two drawings, and however often it is drawn: it shows the mean of the one before."""
    monkeypatch.setattr(progress_bar, "_SECONDS_BETWEEN_UPDATES", interval)
    assert count(make(), reads, bar=True) == [1] * 6


def test_an_enabled_scaler_does_not_add_a_read(reads):
    """Overflows are read once, not with each reading of the scale."""
    brain = make()
    brain.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    assert count(brain, reads) == [1] * 6


@pytest.mark.parametrize("scaled", [False, True])
def test_several_optimizers_are_decided_by_one_read(reads, scaled):
    """Their norms, or their overflows, are read together."""

    class Two(Regression):
        def init_optimizers(self):
            layers = self.modules.model
            self.optimizers_dict = {
                "a": sgd(layers[0].parameters()),
                "b": sgd(layers[2:].parameters()),
            }

    brain = make(Two)
    if scaled:
        brain.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    assert count(brain, reads) == [1] * 6


def test_dropping_nonfinite_gradients_adds_one_read_for_all_parameters(reads):
    """The names of the dropped ones are known from the same read."""
    assert count(make(skip_nonfinite_grads=True), reads) == [2] * 6


def test_weighted_losses_add_no_read(reads):
    """A weight may be a tensor of the device."""

    class Weighted(Regression):
        def loss_weight(self, batch):
            return torch.ones(()) * len(batch[0])

    assert count(make(Weighted), reads) == [1] * 6


def test_an_evaluation_reads_nothing_until_it_ends(reads):
    """The mean is computed on the device."""
    brain = make()
    count(brain, reads, batches())
    assert brain.per_batch("VALID") == [0] * 6


def test_a_read_is_seen(reads):
    """A loss that the recipe reads is counted."""

    class Reading(Regression):
        def on_fit_batch_end(self, batch, outputs, loss, should_step):
            assert math.isfinite(loss.item())

    assert count(make(Reading), reads) == [2] * 6


@pytest.mark.parametrize("bad", [(), (0,), (2, 5), (7,)], ids=str)
@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("opt_class", [sgd, fused])
def test_training_without_reads_gives_the_same_bits(monkeypatch, caplog, opt_class, factor, bad):
    """Weights, buffers, optimizer state, mean, and what is logged of losses not finite."""

    def train():
        caplog.clear()
        ends = []
        brain = make(opt_class=opt_class, grad_accumulation_factor=factor)
        brain.on_stage_end = lambda stage, loss, epoch: ends.append((loss, brain.nonfinite_count))
        brain.fit(range(2), batches(bad=bad), progressbar=False)
        state = [*brain.modules.model.state_dict().values()]
        for entry in brain.optimizer.state_dict()["state"].values():
            state += [entry[name] for name in sorted(entry)]
        counted = [record.args[1:] for record in caplog.records if "not finite" in record.message]
        return ends, [value.tolist() for value in state], counted

    at_once = train()
    take_for_an_accelerator(monkeypatch)
    ends, state, counted = train()
    assert (ends, state) == at_once[:2]
    assert [numbers[1:] for numbers in counted] == [numbers[1:] for numbers in at_once[2]]


def test_a_step_that_is_left_out_on_the_device_is_counted_at_the_next(monkeypatch, caplog):
    """With the number of its own batch, and against the patience."""
    take_for_an_accelerator(monkeypatch)
    counts = []
    brain = make(opt_class=fused, nonfinite_patience=1)
    brain.on_fit_batch_end = lambda *_: counts.append(brain.nonfinite_count)
    with pytest.raises(ValueError, match="2 batches of this epoch had one that is not"):
        brain.fit(range(1), batches(bad=(2, 5)), progressbar=False)
    assert counts == [0, 0, 0, 1, 1, 1]
    assert "A gradient of batch 3 is not finite" in caplog.text


def test_a_checkpoint_counts_the_step_before_it(monkeypatch, tmp_path):
    """A save between the step and its count holds what the next step will count."""
    take_for_an_accelerator(monkeypatch)

    def save(batch, *_):
        if brain.step == 3:
            brain.checkpointer.save_checkpoint()
            assert brain.nonfinite_count == 0

    brain = make(opt_class=fused, checkpointer=Checkpointer(tmp_path))
    brain.on_fit_batch_end = save
    brain.fit(range(1), batches(bad=(2,)), progressbar=False)
    saved = min(tmp_path.glob("CKPT*/brain.ckpt")).read_text(encoding="utf-8")
    assert "nonfinite_count: 1" in saved
