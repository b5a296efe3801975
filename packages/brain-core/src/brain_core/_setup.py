"""From what a `Brain` was given to what it works with."""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from brain_dist import World, infer_device, is_distributed_initialized

from ._suggest import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from brain_ckpt import Checkpointer

    from ._options import RunOptions


__all__ = [
    "HParams",
    "Modules",
    "as_modules",
    "check_group",
    "choose_device",
    "choose_precisions",
    "describe_parameters",
    "redirect_to_temporary",
]

logger = logging.getLogger(__name__)


class HParams(SimpleNamespace):
    """The hyperparameters, by attribute; a missing one is named together with the nearest."""

    def __getattr__(self, name: str) -> Any:
        """Say what is missing, as ``hasattr`` and ``getattr`` with a default expect."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"hparams must hold {name!r} because the recipe reads it, but only "
            f"{', '.join(vars(self)) or 'nothing'} was given.{nearest(name, vars(self))}"
        )


class Modules(torch.nn.ModuleDict):
    """The modules, by attribute and by key; a missing one is named together with the nearest."""

    def __getattr__(self, name: str) -> Any:
        """Return a module, or say which there are."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise AttributeError(
                f"modules must hold {name!r} because the recipe reads it, but only "
                f"{', '.join(self.keys()) or 'nothing'} was given.{nearest(name, self.keys())}"
            ) from None


def choose_device(device: str | None) -> tuple[str, str]:
    """Return the device to work on and its type, and make an accelerator's index the current one.

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
    """Return the precisions of training and evaluation, older spellings read.

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
    """Refuse to train under ``torchrun`` without a process group: every rank would train alone."""
    world = World.from_environment()
    if world.world_size > 1 and not is_distributed_initialized():
        raise ValueError(
            f"This is rank {world.rank} of {world.world_size}, and no process group is there to "
            "join them. Call brain_dist.ddp_init_group(run_opts) before making the Brain."
        )


def redirect_to_temporary(checkpointer: Checkpointer) -> None:
    """Let a debug run's checkpoints go to a directory that vanishes with the checkpointer."""
    folder = tempfile.mkdtemp(prefix="brain-debug-")
    logger.info("Debug mode: checkpoints go to the temporary directory %s.", folder)
    checkpointer.checkpoints_dir = Path(folder)
    weakref.finalize(checkpointer, shutil.rmtree, folder, ignore_errors=True)


def describe_parameters(name: str, modules: torch.nn.Module) -> str:
    """Say how many parameters there are and how many of them are trained."""
    sizes = [(p.numel(), p.requires_grad) for p in modules.parameters()]
    total = sum(size for size, _ in sizes)
    trainable = sum(size for size, trained in sizes if trained)
    share = 100 * trainable / total if total else 0.0
    return (
        f"{name} has {with_unit(total)} parameters, {with_unit(trainable)} of them trainable "
        f"({share:.2f}%)."
    )


def with_unit(number: float) -> str:
    """Shorten a count.

    Examples
    --------
    >>> with_unit(950), with_unit(1_234_567)
    ('950', '1.2M')
    """
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def as_modules(modules: Mapping[str, torch.nn.Module] | None, device: str) -> Modules:
    """Put modules on the device, under names that can be read as attributes.

    Raises
    ------
    TypeError
        For a value that is no module.
    """
    for name, module in (modules or {}).items():
        if not isinstance(module, torch.nn.Module):
            raise TypeError(
                f"modules must hold torch.nn.Module objects, got {module!r} as {name!r}. "
                "Put anything else into hparams."
            )
    return Modules(modules).to(device)
