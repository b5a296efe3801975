"""The size of a state in a checkpoint, estimated without copying or writing it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from brain_ckpt.recoverables.states import get_state

if TYPE_CHECKING:
    from collections.abc import Callable

# How many tensors of the size of a parameter torch's optimizers add at their first step.
_MOMENTS: dict[str, Callable[[Mapping[str, Any]], int]] = {
    "Adadelta": lambda _: 2,
    "Adam": lambda group: 2 + bool(group.get("amsgrad")),
    "AdamW": lambda group: 2 + bool(group.get("amsgrad")),
    "Adamax": lambda _: 2,
    "NAdam": lambda _: 2,
    "RAdam": lambda _: 2,
    "RMSprop": lambda group: 1 + bool(group["momentum"]) + bool(group["centered"]),
    "SGD": lambda group: int(bool(group["momentum"])),
}


def estimate_bytes(obj: Any) -> int:
    """Return about how many bytes the tensors in the state of an object take in a checkpoint.

    What an optimizer adds at its first step is included.
    """
    # Tensors that share memory are written once.
    sizes = {_identity(tensor): _bytes_of(tensor) for tensor in _tensors(get_state(obj))}
    total = sum(sizes.values())
    if isinstance(obj, torch.optim.Optimizer) and not obj.state:
        total += _bytes_of_moments(obj)
    return total


def _bytes_of_moments(optimizer: torch.optim.Optimizer) -> int:
    count = _MOMENTS.get(type(optimizer).__name__)
    if count is None:
        return 0
    return sum(
        count(group) * _bytes_of(parameter)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad
    )


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)


def _bytes_of(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()  # of all ranks, if it is sharded


def _identity(tensor: torch.Tensor) -> tuple[object, ...]:
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor), tensor.storage_offset()
    except (RuntimeError, NotImplementedError):  # a subclass without a storage
        return (id(tensor),)
