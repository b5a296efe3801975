"""Plain values: what they take, whether they have changed, and copies for a checkpoint."""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from typing import Any

import numpy as np
import torch

from brain_core.resume.description import digest
from brain_core.resume.recoverables import has_state

__all__ = ["from_saved", "mark_of", "size_of", "to_saved"]

_DEEPEST = 5
_MOST_VALUES = 10_000  # of an object that is looked into
_LARGEST_DIGESTED_BYTES = 2**28
_SCALARS = (type(None), bool, int, float, complex, str, bytes)
_SEQUENCES = (list, tuple, set, frozenset, deque)
_MAPPINGS = (dict, OrderedDict)
_TENSOR, _GENERATOR = "__tensor__", "__generator__"


def size_of(value: Any, depth: int = _DEEPEST) -> int | None:
    """Return about how many bytes a plain value takes; None for a value that is not plain.

    Plain are numbers, strings, bytes, tensors without a graph, arrays, the generators of Python and
    NumPy, and lists, tuples, sets and dicts of them.
    """
    kind = type(value)
    size: int | None = None
    if kind in _SCALARS:
        size = len(value) if kind in (str, bytes) else 8
    elif kind is torch.Tensor:
        size = value.numel() * value.element_size() if value.grad_fn is None else None
    elif isinstance(value, np.generic) or kind is np.ndarray:
        size = None if value.dtype.hasobject else int(value.nbytes)
    elif kind in (random.Random, np.random.Generator):
        size = 5000
    elif kind in _SEQUENCES or kind in _MAPPINGS:
        parts = [*value.keys(), *value.values()] if kind in _MAPPINGS else list(value)
        sizes = [size_of(part, depth - 1) for part in parts] if depth else [None]
        size = None if None in sizes else sum(s for s in sizes if s is not None)
    return size


def mark_of(value: Any) -> Any:
    """Return something that differs once the value has changed; None where that cannot be told."""
    size = size_of(value)
    if size is not None and size > _LARGEST_DIGESTED_BYTES:
        return (id(value), getattr(value, "_version", None))
    if size is None and not _can_be_compared(value):
        return None
    return type(value), digest(value, _MOST_VALUES)


def to_saved(value: Any) -> Any:
    """Return a copy for a checkpoint, which holds the device of a tensor and generators' states."""
    kind = type(value)
    if kind is torch.Tensor:
        return {_TENSOR: value.detach().cpu().clone(), "device": str(value.device)}
    if kind is random.Random:
        return {_GENERATOR: value.getstate()}
    if kind is np.random.Generator:
        return {_GENERATOR: value.bit_generator.state}
    return _rebuilt(value, to_saved)


def from_saved(saved: Any, present: Any) -> Any:
    """Return the value that `to_saved` was given.

    Parameters
    ----------
    saved : object
        What `to_saved` returned.
    present : object
        What stands in the value's place: a generator is kept and set to the saved state.
    """
    if isinstance(saved, dict) and _TENSOR in saved:
        return saved[_TENSOR].to(_device_like(saved["device"])).clone()
    if isinstance(saved, dict) and _GENERATOR in saved:
        return _generator(saved[_GENERATOR], present)
    return _rebuilt(saved, lambda part: from_saved(part, None))


def _rebuilt(value: Any, convert: Any) -> Any:
    """Return a container with converted parts, and any other value as it is, arrays copied."""
    kind = type(value)
    if kind is np.ndarray:
        return value.copy()
    if kind is deque:
        return deque(map(convert, value), value.maxlen)
    if kind in _SEQUENCES:
        return kind(map(convert, value))
    if kind in _MAPPINGS:
        return kind((key, convert(part)) for key, part in value.items())
    return value


def _generator(state: Any, present: Any) -> Any:
    if isinstance(state, dict):
        generator = present
        if not isinstance(generator, np.random.Generator):
            generator = np.random.Generator(getattr(np.random, state["bit_generator"])())
        generator.bit_generator.state = state
        return generator
    generator = present if isinstance(present, random.Random) else random.Random()  # noqa: S311
    version, words, gauss = state
    generator.setstate((version, tuple(words), gauss))
    return generator


def _can_be_compared(value: Any) -> bool:
    """Return whether a digest tells a change of an object that is not plain."""
    if isinstance(value, (*_SEQUENCES, *_MAPPINGS)):
        parts = value.values() if isinstance(value, _MAPPINGS) else value
        return all(size_of(part) is not None or _can_be_compared(part) for part in parts)
    is_opaque = callable(value) or isinstance(value, (type, torch.Tensor)) or has_state(value)
    return not is_opaque and bool(getattr(value, "__dict__", None))


def _device_like(device: str) -> str:
    kind = device.partition(":")[0]
    backend = getattr(torch, kind, None)
    is_there = kind == "cpu" or (backend is not None and backend.is_available())
    return device if is_there else "cpu"
