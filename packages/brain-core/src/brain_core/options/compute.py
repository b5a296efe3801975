"""From options to what a run computes on and in: device, precisions, gradient scaler."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from brain_core.options.determinism import prepare_determinism
from brain_core.options.device import check_group, choose_device, choose_precisions
from brain_dist import AMPConfig, TorchAutocast, make_grad_scaler

if TYPE_CHECKING:
    import torch

    from brain_core.options.run_options import RunOptions

__all__ = ["Compute", "choose_compute"]


class Compute(NamedTuple):
    """What a run computes on and in; each is an attribute of `Brain`."""

    device: str
    device_type: str
    precision: str
    eval_precision: str
    training_ctx: TorchAutocast
    evaluation_ctx: TorchAutocast
    scaler: torch.amp.GradScaler


def choose_compute(options: RunOptions) -> Compute:
    """Return device, precisions and scaler for some options.

    Raises
    ------
    ValueError
        For a device that torch does not know, fp16 on the CPU, or several ranks without a group.
    """
    check_group()
    if options.deterministic:  # before a device is used
        prepare_determinism(options.device, options.compile_mode if options.compile else None)
    device, device_type = choose_device(options.device)
    precision, eval_precision = choose_precisions(options, device_type)
    uses_scaler = precision == "fp16" and device_type == "cuda"
    return Compute(
        device,
        device_type,
        precision,
        eval_precision,
        _autocast(device_type, precision),
        _autocast(device_type, eval_precision),
        make_grad_scaler(device, uses_scaler),
    )


def _autocast(device_type: str, precision: str) -> TorchAutocast:
    return TorchAutocast(device_type=device_type, dtype=AMPConfig.from_name(precision).dtype)
