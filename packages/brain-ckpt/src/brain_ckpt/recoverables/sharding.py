"""Sharded states: which objects have them, and how their tensors are taken out of a state.

A tensor of which each rank holds a part is saved in ``shards/``.  The state in the usual file has
a placeholder in its place, with the tensor's name.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

PLACEHOLDER = "__brain_ckpt_shard__"


def is_sharded(obj: Any) -> bool:
    """Return whether the state of an object has tensors of which this rank holds a part."""
    from brain_dist import is_sharded as has_shards

    return isinstance(obj, (nn.Module, torch.optim.Optimizer)) and has_shards(obj)


def is_dtensor(value: Any) -> bool:
    """Return whether a value is a tensor of which this rank holds a part."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def split(state: Any, name: str) -> tuple[Any, dict[str, Any]]:
    """Take the sharded tensors out of a state.

    Parameters
    ----------
    state : object
        A state of mappings, lists, tuples and tensors.
    name : str
        The name of the recoverable.

    Returns
    -------
    object, dict of str to DTensor
        The state with placeholders, and the tensors by the names in the placeholders.
    """
    shards: dict[str, Any] = {}

    def walk(value: Any, path: str) -> Any:
        if is_dtensor(value):
            shards[path] = value.detach()
            return {PLACEHOLDER: path}
        return map_parts(value, path, walk)

    return walk(state, name), shards


def map_parts(value: Any, path: str, function: Callable[[Any, str], Any]) -> Any:
    """Apply a function of value and path to the parts of a mapping, list or tuple.

    A container whose parts do not change is returned as it is.
    """
    if isinstance(value, Mapping):
        parts = {key: function(inner, f"{path}/{key}") for key, inner in value.items()}
        if all(parts[key] is inner for key, inner in value.items()):
            return value
        changed = copy.copy(value) if isinstance(value, dict) else dict(value)
        changed.update(parts)
        return changed
    if type(value) in (list, tuple):
        items = [function(inner, f"{path}/{n}") for n, inner in enumerate(value)]
        unchanged = all(new is old for new, old in zip(items, value, strict=True))
        return value if unchanged else type(value)(items)
    return value


def has_placeholders(state: Any) -> bool:
    """Return whether tensors were taken out of a state by `split`."""
    if isinstance(state, Mapping):
        return PLACEHOLDER in state or any(map(has_placeholders, state.values()))
    return isinstance(state, (list, tuple)) and any(map(has_placeholders, state))
