"""Check that all ranks hold the same modules, and make their tensors equal."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import distributed, nn

from brain_dist.collectives import gather_objects
from brain_dist.world import is_distributed_initialized

if TYPE_CHECKING:
    from collections.abc import Mapping

# By name of a module, parameter or buffer: type, shape, dtype and use.
Description = dict[str, str]


def check_same_modules(modules: Mapping[str, nn.Module] | nn.ModuleDict) -> None:
    """Check that every rank has modules with the same names, shapes and dtypes.

    Every rank has to call it.  It does nothing in one process.

    Parameters
    ----------
    modules : mapping of str to nn.Module

    Raises
    ------
    ValueError
        On every rank, naming the first module, parameter or buffer that differs, what it is on
        rank 0, and on which rank it is something else.
    """
    if not is_distributed_initialized():
        return
    description = _describe(modules)
    digest = hashlib.sha256(repr(list(description.items())).encode()).hexdigest()
    if len(set(gather_objects(digest))) == 1:
        return
    descriptions = gather_objects(description)
    raise ValueError(
        f"every rank needs the same modules, in the same order, got "
        f"{_first_difference(descriptions)}; build them from the same hyperparameters on every "
        f"rank, not from its data"
    )


def broadcast_tensors(module: nn.Module) -> None:
    """Copy rank 0's parameters and buffers to every rank, in place."""
    for tensor in [*module.parameters(), *module.buffers()]:
        # Shares the memory of the tensor; autograd does not record what is written to it.
        target = tensor.detach()
        flat = target.contiguous().view(-1)
        # As bytes: not every backend supports every dtype.
        distributed.broadcast(flat.view(torch.uint8), src=0)
        if not target.is_contiguous():
            target.copy_(flat.view(target.shape))


def _describe(modules: Mapping[str, nn.Module] | nn.ModuleDict) -> Description:
    description: Description = {}
    for name, module in modules.items():
        description[name] = f"a {type(module).__name__}"
        for key, parameter in module.named_parameters():
            use = "trainable" if parameter.requires_grad else "frozen"
            description[f"{name}.{key}"] = f"{_dtype_and_shape(parameter)}, {use}"
        for key, buffer in module.named_buffers():
            description[f"{name}.{key}"] = f"{_dtype_and_shape(buffer)}, a buffer"
    return description


def _dtype_and_shape(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _first_difference(descriptions: list[Description]) -> str:
    first = descriptions[0]
    for rank, other in enumerate(descriptions):
        for name in [*first, *other]:
            on_first, on_other = first.get(name, "missing"), other.get(name, "missing")
            if on_first != on_other:
                return f"{name!r}: {on_first} on rank 0 and {on_other} on rank {rank}"
        if list(first) != list(other):
            names = next((a, b) for a, b in zip(first, other, strict=True) if a != b)
            return f"{names[0]!r} on rank 0 where rank {rank} has {names[1]!r}"
    raise AssertionError("called for descriptions that do not differ")
