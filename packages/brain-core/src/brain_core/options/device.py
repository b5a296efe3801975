"""From options to what is computed on and in: the device, the precisions, the process group."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from brain_dist import World, infer_device, is_distributed_initialized

if TYPE_CHECKING:
    from brain_core.options.run_options import RunOptions

__all__ = ["check_group", "choose_device", "choose_precisions"]

logger = logging.getLogger(__name__)


def choose_device(device: str | None) -> tuple[str, str]:
    """Return the device and its type, and make a CUDA device the current one.

    Raises
    ------
    ValueError
        For a device that torch does not know.
    """
    device = device or infer_device()
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"device must be one that torch knows (cpu, cuda, cuda:N, mps, xpu), got {device!r}."
        ) from error
    if parsed.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(
                f"device {device!r} needs a GPU, and torch sees none. Run with --device cpu."
            )
        torch.cuda.set_device(parsed.index or 0)
    return device, parsed.type


def choose_precisions(options: RunOptions, device_type: str) -> tuple[str, str]:
    """Return the precisions of training and evaluation; older option names are understood.

    Raises
    ------
    ValueError
        For fp16 on the CPU.
    """
    precision: str = options.precision
    for old, new in (("auto_mix_prec", "fp16"), ("bfloat16_mix_prec", "bf16")):
        if options[old]:
            logger.warning("--%s is deprecated: write --precision=%s.", old, new)
            precision = new
    if device_type == "cpu" and "fp16" in (precision, options.eval_precision):
        raise ValueError(
            "--precision and --eval_precision must be fp32 or bf16 on the CPU, got fp16, which it "
            "does not support. Use --precision=bf16 or --eval_precision=bf16 for mixed precision."
        )
    return precision, options.eval_precision


def check_group() -> None:
    """Raise if ``torchrun`` started several processes and no process group exists.

    Every rank would train alone.

    Raises
    ------
    ValueError
        In that case.
    """
    world = World.from_environment()
    if world.world_size > 1 and not is_distributed_initialized():
        raise ValueError(
            f"A process group is required on several ranks, and rank {world.rank} of "
            f"{world.world_size} has none. Call brain_dist.ddp_init_group(run_opts) before making "
            "the Brain."
        )
