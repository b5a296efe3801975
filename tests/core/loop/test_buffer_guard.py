"""Buffers that the forwards of a skipped step wrote are set back."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from brain_core.loop.buffer_guard import BufferGuard
from brain_core.stage import Stage


class Counted(torch.nn.Module):
    """Writes buffers in each way that a forward can: in place, in part, by assignment."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(4)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("replaced", torch.zeros(4))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("transposed", torch.zeros(4, 3).t())
        self.register_buffer("codebook", torch.zeros(100, 100))
        self.register_buffer("unused", torch.zeros(100, 100))
        self.register_buffer("absent", None)

    def forward(self, x):
        with torch.no_grad():
            self.mean += x.mean(0)
            self.replaced = 0.9 * self.replaced + x.mean(0)
            self.count += 1
            self.transposed[0] += x.mean(0)
            self.codebook[3] += x.mean()
        return self.norm(x)


def values(module):
    """Return copies of all buffers."""
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def assert_equal(module, expected):
    """Check the buffers, bit by bit."""
    for name, buffer in module.named_buffers():
        assert torch.equal(buffer, expected[name]), name


@pytest.mark.parametrize("is_skipped", [False, True])
def test_buffers_are_restored_by_a_flag_that_is_not_read(is_skipped):
    """Those that were written in place, in each of three windows."""
    module, guard = torch.nn.Sequential(Counted().norm, Counted().norm), BufferGuard()
    module.register_buffer("transposed", torch.zeros(4, 3).t())
    guard.watch(module)
    for _ in range(3):
        before = values(module)
        guard.remember()
        module(torch.full((2, 4), math.nan if is_skipped else 1.0))
        module.transposed[0] += 1
        after = values(module)
        assert guard.can_restore_on_device()
        guard.restore_where(torch.tensor(float(is_skipped)))
        assert_equal(module, before if is_skipped else after)
        guard.forget()


def test_a_buffer_that_was_replaced_cannot_be_restored_by_a_flag():
    """The module has another tensor then, or not, as the flag decides."""
    module, guard = Counted(), BufferGuard()
    guard.watch(module)
    guard.remember()
    module(torch.ones(2, 4))
    assert not guard.can_restore_on_device()


def test_every_way_of_writing_is_undone():
    """In the first window, and in a later one."""
    module, guard = Counted(), BufferGuard()
    guard.watch(module)
    for batch in (torch.full((2, 4), math.nan), torch.randn(2, 4), torch.full((2, 4), math.nan)):
        before = values(module)
        guard.remember()
        module(batch)
        if batch.isnan().any():
            guard.restore()
            assert_equal(module, before)
        guard.forget()


def test_a_large_buffer_is_copied_only_where_it_is_written():
    """A table of constants costs nothing after the first window."""
    module, guard = Counted(), BufferGuard()
    guard.watch(module)
    guard.remember()
    module(torch.randn(2, 4))
    guard.forget()
    guard.remember()
    copied = {id(buffer.tensor) for buffer in guard._copied}
    assert id(module.codebook) in copied
    assert id(module.unused) not in copied


def test_a_large_buffer_that_is_written_later_is_copied_from_then_on():
    """Torch counts the writes to a tensor."""
    module, guard = Counted(), BufferGuard()
    guard.watch(module)
    for _ in range(2):
        guard.remember()
        module(torch.randn(2, 4))
        guard.forget()
    module.unused += 1
    before = values(module)
    guard.remember()
    module.unused += math.nan
    guard.restore()
    assert_equal(module, before)


def test_without_a_copy_nothing_is_set_back():
    """A recipe's own fit_batch takes none."""
    module, guard = Counted(), BufferGuard()
    guard.watch(module)
    module(torch.randn(2, 4))
    before = values(module)
    guard.restore()
    assert_equal(module, before)


class Normalized(torch.nn.Sequential):
    """A linear layer behind a batch norm."""

    def __init__(self):
        super().__init__(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))


def loader(pairs_of_batch):
    """Return a loader of whole batches."""
    return torch.utils.data.DataLoader(pairs_of_batch, batch_size=None)


def batches(bad=()):
    """Return six batches; those named are NaN."""
    generator = torch.Generator().manual_seed(1)
    made = [
        (torch.randn(8, 4, generator=generator), torch.randn(8, 2, generator=generator))
        for _ in range(6)
    ]
    return [(x * math.nan, y) if i in bad else (x, y) for i, (x, y) in enumerate(made)]


@pytest.mark.parametrize("skip_nonfinite_grads", [False, True])
@pytest.mark.parametrize(
    ("accumulation", "bad", "left"), [(1, (2,), (0, 1, 3, 4, 5)), (2, (2,), (0, 1, 4, 5))]
)
def test_a_batch_with_nan_leaves_no_trace_in_batch_norm(
    regression, accumulation, bad, left, skip_nonfinite_grads
):
    """The buffers are those of a training that never saw the window of that batch."""
    options = {"device": "cpu", "grad_accumulation_factor": accumulation}
    model = Normalized()
    twin = copy.deepcopy(model)
    for module, data, extra in (
        (model, batches(bad), {"skip_nonfinite_grads": skip_nonfinite_grads}),
        (twin, [batches()[i] for i in left], {}),
    ):
        brain = regression(
            {"model": module},
            lambda p: torch.optim.SGD(p, lr=0.1),
            run_opts={**options, **extra},
        )
        brain.fit(range(1), loader(data))
    assert model[0].num_batches_tracked == len(left)
    for got, expected in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(got, expected)


def test_a_buffer_that_a_hook_wrote_is_kept(regression):
    """What is set back is the state before the window, not that after the last step."""

    class Hooked(regression):
        def on_fit_batch_end(self, batch, outputs, loss, should_step):
            self.modules.model[0].running_mean += 10.0

    brain = Hooked(
        {"model": Normalized()}, lambda p: torch.optim.SGD(p, lr=0.1), run_opts={"device": "cpu"}
    )
    brain.fit(range(1), loader(batches(bad=(5,))))
    assert brain.modules.model[0].running_mean.min() > 30.0


def test_an_fp16_overflow_sets_the_buffers_back(regression):
    """The scaler skips the step; its scale falls."""
    model = Normalized()
    brain = regression(
        {"model": model}, lambda p: torch.optim.SGD(p, lr=0.1), run_opts={"device": "cpu"}
    )
    brain.scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=100)
    brain.fit(range(1), loader(batches(bad=(1, 4))))
    assert model[0].num_batches_tracked == 4
    assert model[0].running_var.isfinite().all()
    assert brain.scaler.get_scale() == 0.5
    assert brain.evaluate_batch(batches()[0], Stage.VALID).isfinite()
