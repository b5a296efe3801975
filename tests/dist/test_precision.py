"""Autocast, full-precision forwards and the gradient scaler."""

import pytest
import torch
from torch import nn

import brain_dist
from brain_dist import AMPConfig, TorchAutocast, fwd_default_precision


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (None, torch.float32),
        ("fp32", torch.float32),
        ("fp16", torch.float16),
        ("bf16", torch.bfloat16),
    ],
)
def test_a_precision_has_a_name(name, dtype):
    """No name means fp32."""
    assert AMPConfig.from_name(name) == AMPConfig(dtype)


def test_an_unknown_precision_is_refused():
    """The error lists the known ones."""
    with pytest.raises(
        ValueError, match=r"\(fp64\) incorrect, expected one of `fp32`, `fp16`, `bf16`"
    ):
        AMPConfig.from_name("fp64")


def test_fp32_enters_no_autocast():
    """Not even a disabled one, which would cost time."""
    context = TorchAutocast(device_type="cpu", dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16), context:
        assert torch.is_autocast_enabled("cpu")
    with TorchAutocast("cpu"):
        assert not torch.is_autocast_enabled("cpu")


def test_bf16_enters_autocast_and_exits_it_after_an_exception():
    """The context can be entered again afterwards."""
    context = TorchAutocast(device_type="cpu", dtype=torch.bfloat16)
    for _ in range(2):
        with context:
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        with pytest.raises(KeyError), context:
            raise KeyError
        assert not torch.is_autocast_enabled("cpu")


def test_one_context_can_be_entered_inside_itself():
    """Torch's own object would lose the former state, and leave autocast on."""
    context = TorchAutocast(device_type="cpu", dtype=torch.bfloat16)
    with context:
        with context:
            assert torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")


class _Loss(nn.Module):
    @fwd_default_precision
    def forward(self, x, other=None, n=1):
        return x @ x, other, torch.is_autocast_enabled("cpu"), n

    @fwd_default_precision(cast_inputs=None)
    def as_is(self, x):
        return x @ x


def test_a_forward_of_default_precision_computes_in_fp32_under_autocast():
    """Floating-point inputs are cast, in containers too; integers and float64 are not."""
    half = torch.ones(2, 2, dtype=torch.bfloat16)
    other = {"half": [half], "int": torch.ones(1, dtype=torch.int32), "double": half.double()}
    with torch.autocast("cpu", torch.bfloat16):
        product, cast, enabled, n = _Loss()(half, other=other, n=2)
        assert torch.is_autocast_enabled("cpu")
    assert (product.dtype, enabled, n) == (torch.float32, False, 2)
    assert cast["half"][0].dtype == torch.float32
    assert (cast["int"].dtype, cast["double"].dtype) == (torch.int32, torch.float64)


def test_a_forward_of_default_precision_can_allow_autocast():
    """force_allow_autocast runs it undecorated; cast_inputs=None leaves autocast as it is."""
    with torch.autocast("cpu", torch.bfloat16):
        product, _, enabled, _ = _Loss()(torch.ones(2, 2), force_allow_autocast=True)
        as_is = _Loss().as_is(torch.ones(2, 2))
    assert (product.dtype, enabled, as_is.dtype) == (torch.bfloat16, True, torch.bfloat16)


def test_a_forward_of_default_precision_does_nothing_without_autocast():
    """Nothing is cast."""
    half = torch.ones(2, 2, dtype=torch.bfloat16)
    assert _Loss()(half)[0].dtype == torch.bfloat16


def test_a_disabled_scaler_only_steps_the_optimizer():
    """Recipes call scale, unscale_, step and update with any precision."""
    scaler = brain_dist.make_grad_scaler("cpu", enabled=False)
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    loss = (weight * 2).sum()
    assert scaler.scale(loss) is loss
    loss.backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert weight.item() == 0.0
    assert not scaler.is_enabled()


def test_fp16_on_the_cpu_is_refused():
    """The advice is bf16."""
    with pytest.raises(ValueError, match=r"got device='cpu'; use --precision=bf16"):
        brain_dist.make_grad_scaler("cpu", enabled=True)
