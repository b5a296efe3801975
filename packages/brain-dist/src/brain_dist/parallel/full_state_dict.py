"""States with plain keys and whole tensors, whatever wraps the module."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from brain_dist.parallel.wrapped_modules import unwrap_module

if TYPE_CHECKING:
    from collections.abc import Mapping


def is_sharded(obj: nn.Module | torch.optim.Optimizer) -> bool:
    """Say whether this rank holds only slices of a module, or of what an optimizer optimizes.

    Then `full_state_dict` is a collective that every rank has to call; otherwise it is not.

    Parameters
    ----------
    obj : nn.Module or torch.optim.Optimizer
    """
    if isinstance(obj, nn.Module):
        return any(map(_is_dtensor, obj.parameters()))
    return any(_is_dtensor(p) for group in obj.param_groups for p in group["params"])


def full_state_dict(obj: nn.Module | torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state as one process without any wrapping would have it.

    Under FSDP2 every rank has to call it: the slices are gathered, one tensor after the other,
    onto the CPU.  Otherwise the tensors are those of ``state_dict()``, not copies.

    Parameters
    ----------
    obj : nn.Module or torch.optim.Optimizer
        A module under DDP, FSDP2, torch.compile or nothing; an optimizer of one.

    Returns
    -------
    dict
        With the keys of the plain module; what `load_full_state_dict` takes under any wrapping
        and any number of ranks, and ``load_state_dict`` of the plain object as well.
    """
    if isinstance(obj, nn.Module):
        obj = unwrap_module(obj)
    gathered: dict[str, Any] = _gather(obj.state_dict())
    return gathered


def load_full_state_dict(obj: nn.Module | torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state with plain keys and whole tensors, of which each rank keeps its slice.

    Parameters
    ----------
    obj : nn.Module or torch.optim.Optimizer
        A module under DDP, FSDP2, torch.compile or nothing; an optimizer of one.
    state : mapping
        What `full_state_dict` returned, the same on every rank; it is not changed.
    """
    if isinstance(obj, nn.Module):
        obj = unwrap_module(obj)
        slices = {key: _slice(value, obj_value) for key, (value, obj_value) in _pairs(obj, state)}
        obj.load_state_dict({**state, **slices})
        return
    parameters = [p for group in obj.param_groups for p in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    sliced = {
        number: {name: _slice(value, parameter) for name, value in state["state"][number].items()}
        for number, parameter in zip(numbers, parameters, strict=False)
        if number in state["state"]
    }
    obj.load_state_dict({**state, "state": {**state["state"], **sliced}})


def _pairs(module: nn.Module, state: Mapping[str, Any]) -> list[tuple[str, tuple[Any, Any]]]:
    own = module.state_dict()
    return [(key, (value, own[key])) for key, value in state.items() if key in own]


def _gather(value: Any) -> Any:
    if _is_dtensor(value):
        return value.full_tensor().detach().cpu()
    if type(value) is dict:
        return {key: _gather(item) for key, item in value.items()}
    if isinstance(value, dict):
        # An OrderedDict that carries its _metadata.
        copied = value.copy()
        copied.update((key, _gather(item)) for key, item in value.items())
        return copied
    if type(value) in (list, tuple):
        return type(value)(_gather(item) for item in value)
    return value


def _slice(value: Any, like: Any) -> Any:
    # A scalar such as Adam's step has no slices.
    if not _is_dtensor(like) or not isinstance(value, torch.Tensor) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def _is_dtensor(value: Any) -> bool:
    # Importing DTensor takes long, and where nobody has, there is none.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)
