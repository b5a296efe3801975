"""Plain values as JSON holds them, and back: the states of streams and loaders of others."""

from __future__ import annotations

import base64
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

_TYPE = "brain_data.type"
_SEQUENCES = (tuple, set, frozenset)


def to_json(value: Any) -> Any:
    """Return a copy of a value that JSON holds exactly.

    Parameters
    ----------
    value
        Numbers, strings, bytes, None, tensors, arrays without objects, and lists, tuples, sets and
        dicts of these. A tensor's device is not kept.

    Raises
    ------
    TypeError
        For a value of any other type.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, list):
        return [to_json(item) for item in value]
    if isinstance(value, dict) and all(type(key) is str for key in value) and _TYPE not in value:
        return {key: to_json(item) for key, item in value.items()}
    return _tagged(value)


def from_json(value: Any) -> Any:
    """Return a copy of the value that `to_json` was given."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if isinstance(value, dict):
        if _TYPE in value:
            return _READERS[value[_TYPE]](value)
        return {key: from_json(item) for key, item in value.items()}
    return value


def _tagged(value: Any) -> dict[str, Any]:
    """Return a value that JSON has no type for, with the name of its type."""
    if type(value) in _SEQUENCES:
        return {_TYPE: type(value).__name__, "items": [to_json(item) for item in value]}
    if isinstance(value, dict):
        items = [[to_json(key), to_json(item)] for key, item in value.items()]
        return {_TYPE: "dict", "items": items}
    if isinstance(value, (float, complex)):
        kind = "float" if isinstance(value, float) else "complex"
        return {_TYPE: kind, "text": str(value)}
    if isinstance(value, (bytes, bytearray)):
        return {_TYPE: "bytes", "data": _text(value)}
    if isinstance(value, torch.Tensor) and value.layout == torch.strided:
        return _of_tensor(value.detach().cpu())
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufcSUmM":
        kind = "array" if isinstance(value, np.ndarray) else "number"
        data = _text(np.ascontiguousarray(value).tobytes())
        return {_TYPE: kind, "dtype": value.dtype.str, "shape": value.shape, "data": data}
    raise TypeError(
        f"plain values, tensors and arrays are required, got a {type(value).__qualname__}"
    )


def _of_tensor(tensor: torch.Tensor) -> dict[str, Any]:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return {
        _TYPE: "tensor",
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "data": _text(raw),
    }


def _text(data: bytes | bytearray) -> str:
    return base64.b85encode(data).decode()


def _to_tensor(saved: dict[str, Any]) -> torch.Tensor:
    data = bytearray(base64.b85decode(saved["data"]))
    raw = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return raw.view(getattr(torch, saved["dtype"])).reshape(saved["shape"])


def _to_array(saved: dict[str, Any]) -> np.ndarray[Any, Any]:
    data = base64.b85decode(saved["data"])
    flat: np.ndarray[Any, Any] = np.frombuffer(data, dtype=np.dtype(saved["dtype"]))
    array: np.ndarray[Any, Any] = flat.reshape(saved["shape"]).copy()
    return array


_READERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "dict": lambda saved: {from_json(key): from_json(item) for key, item in saved["items"]},
    "tuple": lambda saved: tuple(map(from_json, saved["items"])),
    "set": lambda saved: set(map(from_json, saved["items"])),
    "frozenset": lambda saved: frozenset(map(from_json, saved["items"])),
    "float": lambda saved: float(saved["text"]),
    "complex": lambda saved: complex(saved["text"]),
    "bytes": lambda saved: base64.b85decode(saved["data"]),
    "tensor": _to_tensor,
    "array": _to_array,
    "number": lambda saved: _to_array(saved)[()],
}
