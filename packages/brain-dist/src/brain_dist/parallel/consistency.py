"""Find out whether all ranks hold the same modules, and make them equal."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import distributed, nn

from brain_dist.collectives import gather_objects
from brain_dist.world import is_distributed_initialized

if TYPE_CHECKING:
    from collections.abc import Mapping

Description = dict[str, str]


def check_same_modules(modules: Mapping[str, nn.Module] | nn.ModuleDict) -> None:
    """Check that every rank has modules of the same names, shapes and dtypes.

    Every rank has to call it.  It changes nothing in one process.

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
    mine = _describe(modules)
    digest = hashlib.sha256(repr(list(mine.items())).encode()).hexdigest()
    if len(set(gather_objects(digest))) == 1:
        return
    described = gather_objects(mine)
    raise ValueError(
        f"every rank needs the same modules, in the same order, got {_difference(described)}; "
        f"build them from the same hyperparameters on every rank, not from its data"
    )


def broadcast_tensors(module: nn.Module) -> None:
    """Make every parameter and buffer of a module that of rank 0, in place."""
    for tensor in [*module.parameters(), *module.buffers()]:
        # A view of the same memory that autograd does not watch.
        own = tensor.detach()
        sent = own.contiguous().view(-1)
        # As bytes: not every backend knows every dtype.
        distributed.broadcast(sent.view(torch.uint8), src=0)
        if not own.is_contiguous():
            own.copy_(sent.view(own.shape))


def _describe(modules: Mapping[str, nn.Module] | nn.ModuleDict) -> Description:
    described: Description = {}
    for name, module in modules.items():
        described[name] = f"a {type(module).__name__}"
        for key, parameter in module.named_parameters():
            kind = "trainable" if parameter.requires_grad else "frozen"
            described[f"{name}.{key}"] = f"{_shape(parameter)}, {kind}"
        for key, buffer in module.named_buffers():
            described[f"{name}.{key}"] = f"{_shape(buffer)}, a buffer"
    return described


def _shape(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _difference(described: list[Description]) -> str:
    first = described[0]
    for rank, other in enumerate(described):
        for name in [*first, *other]:
            here, there = first.get(name, "missing"), other.get(name, "missing")
            if here != there:
                return f"{name!r}: {here} on rank 0 and {there} on rank {rank}"
        if list(first) != list(other):
            names = next((a, b) for a, b in zip(first, other, strict=True) if a != b)
            return f"{names[0]!r} on rank 0 where rank {rank} has {names[1]!r}"
    raise AssertionError("called for descriptions that do not differ")
