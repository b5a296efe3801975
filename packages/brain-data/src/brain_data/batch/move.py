"""Moving, casting and pinning the tensors in nested containers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def move(data: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply ``.to`` to the tensors in nested containers; integers are not cast to floats."""
    if isinstance(data, Tensor):
        return _move_tensor(data, args, kwargs)
    if hasattr(data, "to"):
        return data.to(*args, **kwargs)
    if isinstance(data, Mapping):
        return {key: move(value, *args, **kwargs) for key, value in data.items()}
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(move(value, *args, **kwargs) for value in data))
    if isinstance(data, (list, tuple)):
        return [move(value, *args, **kwargs) for value in data]
    return data


def pin(data: Any) -> Any:
    """Copy the tensors in nested containers into page-locked memory."""
    if isinstance(data, Mapping):
        return {key: pin(value) for key, value in data.items()}
    if hasattr(data, "pin_memory"):
        return data.pin_memory()
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*map(pin, data))
    if isinstance(data, (list, tuple)):
        return [pin(value) for value in data]
    return data


def without_dtype(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Return the arguments of ``Tensor.to`` without the dtype."""
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, *args[1:])
    kept = {name: value for name, value in kwargs.items() if name != "dtype"}
    if isinstance(kept.get("tensor"), Tensor):
        kept["device"] = kept.pop("tensor").device
    if not any(isinstance(arg, torch.dtype) for arg in args):
        return args, kept
    # .to(dtype, non_blocking, copy) or .to(device, dtype, non_blocking, copy)
    index = next(i for i, arg in enumerate(args) if isinstance(arg, torch.dtype))
    names = ("non_blocking", "copy")
    kept.update(zip(names, args[index + 1 :], strict=False))
    return args[:index], kept


def target_dtype(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.dtype | None:
    """Return the dtype among the arguments of ``Tensor.to``, or None."""
    for arg in (*args, *kwargs.values()):
        if isinstance(arg, torch.dtype):
            return arg
        if isinstance(arg, Tensor):
            return arg.dtype
    return None


def _move_tensor(data: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    dtype = target_dtype(args, kwargs)
    if dtype is not None and dtype.is_floating_point and not data.is_floating_point():
        # Token 257 would be 256 in bfloat16: like nn.Module.to, do not cast integers.
        args, kwargs = without_dtype(args, kwargs)
        if not args and not kwargs:
            return data
    return data.to(*args, **kwargs)
