"""State dicts with plain keys and full tensors, whatever wraps the module."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from brain_dist.parallel.wrapped_modules import is_fsdp, unwrap_module

if TYPE_CHECKING:
    from collections.abc import Mapping


def is_sharded(obj: nn.Module | torch.optim.Optimizer) -> bool:
    """Return whether this rank holds only shards of a module's or an optimizer's parameters.

    If so, `full_state_dict` is a collective that every rank has to call; otherwise it is not.

    Parameters
    ----------
    obj : nn.Module or torch.optim.Optimizer
    """
    if isinstance(obj, nn.Module):
        # Also while FSDP2 has gathered the parameters, which are plain tensors then.
        return any(map(is_fsdp, obj.modules())) or any(map(_is_dtensor, obj.parameters()))
    return any(_is_dtensor(p) for group in obj.param_groups for p in group["params"])


def full_state_dict(obj: nn.Module | torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state dict that the unwrapped object would have in one process.

    Under FSDP2 every rank has to call it: the shards are gathered on the CPU, one tensor after the
    other.  Otherwise the tensors are those of ``state_dict()``, not copies.

    Parameters
    ----------
    obj : nn.Module or torch.optim.Optimizer
        A module, plain or under DDP, FSDP2 or torch.compile; an optimizer of one.

    Returns
    -------
    dict
        With the keys of the plain module.  `load_full_state_dict` takes it under any wrapping and
        on any number of ranks, and so does ``load_state_dict`` of the plain object.
    """
    if isinstance(obj, nn.Module):
        obj = unwrap_module(obj)
    gathered: dict[str, Any] = _gather(obj.state_dict())
    return gathered


def load_full_state_dict(obj: nn.Module | torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state dict with plain keys and full tensors; each rank keeps its shard.

    Parameters
    ----------
    obj : nn.Module or torch.optim.Optimizer
        A module, plain or under DDP, FSDP2 or torch.compile; an optimizer of one.
    state : mapping
        What `full_state_dict` returned, the same on every rank; it is not modified.
    """
    if isinstance(obj, nn.Module):
        obj = unwrap_module(obj)
        current = obj.state_dict()
        shards = {key: _shard(state[key], current[key]) for key in state if key in current}
        obj.load_state_dict({**state, **shards})
        return
    parameters = [p for group in obj.param_groups for p in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    shards = {
        number: {name: _shard(value, parameter) for name, value in state["state"][number].items()}
        for number, parameter in zip(numbers, parameters, strict=False)
        if number in state["state"]
    }
    obj.load_state_dict({**state, "state": {**state["state"], **shards}})


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


def _shard(value: Any, like: Any) -> Any:
    # A scalar such as Adam's step is not sharded.
    if not _is_dtensor(like) or not isinstance(value, torch.Tensor) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def _is_dtensor(value: Any) -> bool:
    # Importing DTensor takes long; if nothing has imported it, no tensor is one.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)
