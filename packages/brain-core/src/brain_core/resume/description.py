"""Short texts that describe objects, to find out whether the objects have changed."""

from __future__ import annotations

import enum
import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from brain_core.resume.recoverables import has_state

__all__ = ["Pieces", "describe", "digest", "text_of_tensor"]

Pieces = dict[str, str]

_DEEPEST = 5
_LONGEST = 64  # a container with more entries is one piece
_OPAQUE = ("torch.", "logging", "builtins", "functools", "brain_")


def describe(obj: Any, name: str = "batch") -> Pieces:
    """Return a short text for each tensor, array and plain value in an object.

    Examples
    --------
    >>> describe({"lr": 0.1, "steps": [1, 2]}, "scheduler")
    {'scheduler.lr': '0.1', 'scheduler.steps.0': '1', 'scheduler.steps.1': '2'}
    """
    return dict(_walk(obj, name, _DEEPEST, set()))


def digest(obj: Any, most: int | None = None) -> str:
    """Return a short text that changes when a tensor, array or plain value in an object does.

    Parameters
    ----------
    obj : object
        Anything.
    most : int, optional
        Include at most this many values.
    """
    return _digest_of(dict(islice(_walk(obj, "", _DEEPEST, set()), most)))


def _walk(obj: Any, name: str, depth: int, above: set[int]) -> Iterator[tuple[str, str]]:
    text = _text_of(obj)
    if text is not None:
        yield name, text
        return
    if depth == 0 or id(obj) in above:
        return
    above = above | {id(obj)}
    parts = _parts_of(obj)
    if len(parts) > _LONGEST:
        inside = {
            k: v for key, part in parts.items() for k, v in _walk(part, key, depth - 1, above)
        }
        yield name, f"{len(parts)} entries, {_digest_of(inside)}"
        return
    for key, part in parts.items():
        yield from _walk(part, f"{name}.{key}", depth - 1, above)


def _text_of(obj: Any) -> str | None:
    """Return the text of an object without parts, None if it has parts."""
    text: str | None = None
    if isinstance(obj, torch.Tensor):
        text = text_of_tensor(obj)
    elif isinstance(obj, np.ndarray):
        plain = obj if obj.dtype != object else np.array([repr(one) for one in obj.ravel()])
        text = f"{obj.dtype}{list(obj.shape)} {_hash(plain.tobytes())}"
    elif isinstance(obj, torch.Generator):
        text = text_of_tensor(obj.get_state())
    elif isinstance(obj, random.Random):
        text = _hash(repr(obj.getstate()).encode())
    elif isinstance(obj, np.random.Generator):
        text = _digest_of(describe(obj.bit_generator.state))
    elif obj is None or isinstance(obj, (bool, int, float, complex, enum.Enum, np.generic)):
        text = repr(obj)
    elif isinstance(obj, (str, bytes)):
        text = repr(obj)
        if len(text) > _LONGEST:
            text = f"{len(obj)} characters, {_hash(text.encode())}"
    return text


def _parts_of(obj: Any) -> dict[str, Any]:
    """Return the parts of an object by name; empty for an opaque object."""
    if isinstance(obj, Mapping):
        return {str(key): value for key, value in obj.items()}
    if isinstance(obj, AbstractSet):
        return dict.fromkeys(sorted(map(repr, obj)), True)
    if isinstance(obj, Sequence) and not isinstance(obj, range):
        return {str(i): value for i, value in enumerate(obj)}
    if hasattr(obj, "state_dict") and hasattr(obj, "load_state_dict"):
        return {str(key): value for key, value in obj.state_dict().items()}
    if is_dataclass(obj) and not isinstance(obj, type):
        return {field.name: getattr(obj, field.name) for field in fields(obj)}
    opaque = isinstance(obj, (Dataset, DataLoader)) or type(obj).__module__.startswith(_OPAQUE)
    return {} if (opaque and not has_state(obj)) else dict(getattr(obj, "__dict__", {}))


def text_of_tensor(tensor: torch.Tensor) -> str:
    """Return dtype, shape and value of a tensor, the value as a digest if it is long."""
    tensor = tensor.detach()
    if hasattr(tensor, "to_local"):  # this rank's shard of a DTensor
        tensor = tensor.to_local()
    kind = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
    if tensor.device.type == "meta":
        return kind
    dense = tensor.to_dense() if tensor.layout is not torch.strided else tensor
    dense = torch.view_as_real(dense) if dense.is_complex() else dense
    # A copy: FSDP2 cannot free a gathered parameter whose memory NumPy has seen.
    data = dense.to("cpu", copy=True).contiguous().reshape(-1)
    if data.numel() == 1:
        return f"{kind} {data.item()!r}"
    return f"{kind} {_hash(data.view(torch.uint8).numpy().tobytes())}"


def _digest_of(pieces: Pieces) -> str:
    return _hash(repr(pieces).encode())


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
