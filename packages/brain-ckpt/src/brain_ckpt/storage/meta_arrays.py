"""Tensors and arrays in meta: nested lists in CKPT.yaml, restored by notes in the manifest.

A note is [path, type, dtype, shape], where the path holds the keys and indices of the value.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch

# Kinds of NumPy dtypes whose values YAML can hold exactly: bool, integers, floats and strings.
_ARRAY_KINDS = "biufU"


def copy_array(value: Any) -> Any:
    """Return a copy of a tensor or array that YAML can hold, on the CPU; None for another value."""
    if isinstance(value, torch.Tensor):
        exact = value.layout == torch.strided and not (value.is_complex() or value.is_quantized)
        return value.detach().cpu().clone() if exact else None
    if is_array(value) and value.dtype.kind in _ARRAY_KINDS:
        return value.copy()
    return None


def to_lists(meta: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Return meta with nested lists in place of arrays, and the notes that restore them."""
    notes: list[Any] = []

    def walk(value: Any, path: list[Any]) -> Any:
        if isinstance(value, torch.Tensor):
            dtype = str(value.dtype).removeprefix("torch.")
            notes.append([path, "tensor", dtype, list(value.shape)])
            return value.tolist()
        if is_array(value):
            notes.append([path, "array", value.dtype.str, list(value.shape)])
            return value.tolist()
        if isinstance(value, Mapping):
            return {key: walk(inner, [*path, key]) for key, inner in value.items()}
        if isinstance(value, list):
            return [walk(inner, [*path, number]) for number, inner in enumerate(value)]
        return value

    return walk(meta, []), notes


def restore_arrays(meta: dict[str, Any], notes: list[Any]) -> dict[str, Any]:
    """Restore the arrays of meta in place; a note that does not fit is ignored."""
    for path, kind, dtype, shape in notes:
        *parents, last = path
        container: Any = meta
        try:
            for step in parents:
                container = container[step]
            container[last] = _make(container[last], kind, dtype, shape)
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError):
            continue  # CKPT.yaml was edited by hand
    return meta


def _make(values: Any, kind: str, dtype: str, shape: list[int]) -> Any:
    if kind == "tensor":
        found = getattr(torch, dtype)
        if not isinstance(found, torch.dtype):
            raise TypeError(dtype)
        return torch.tensor(values, dtype=found).reshape(shape)
    import numpy as np

    made = np.dtype(dtype)
    if made.kind not in _ARRAY_KINDS:
        raise TypeError(dtype)
    return np.array(values, dtype=made).reshape(shape)


def is_array(value: Any) -> bool:
    """Return whether a value is a NumPy array."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray
