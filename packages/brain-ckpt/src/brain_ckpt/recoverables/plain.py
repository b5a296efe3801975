"""Replace the values of a state that the safe loader does not read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

logger = logging.getLogger(__name__)

_SAFE: tuple[type, ...] = (type(None), bool, int, float, complex, str, bytes, bytearray)
_SAFE += (torch.Tensor, torch.dtype, torch.device, torch.Size, torch.storage.UntypedStorage)


def plain_state(state: Any, name: str) -> Any:
    """Replace NumPy scalars in a state with Python's; warn of other unsafe values."""
    unsafe: list[str] = []
    plain = _plain(state, name, unsafe)
    if unsafe:
        logger.warning(
            "The state of %r has values that are only loaded with trusted=True: %s; keep tensors "
            "and plain values in it",
            name,
            ", ".join(unsafe[:3]),
        )
        return state
    return plain


def _plain(value: Any, where: str, unsafe: list[str]) -> Any:
    kind = type(value)
    if kind in _SAFE or isinstance(value, torch.Tensor):
        return value
    if (
        kind.__module__ == "numpy"
        and hasattr(value, "item")
        and getattr(value, "shape", None) == ()
    ):
        return value.item()
    if isinstance(value, Mapping):
        parts = {key: _plain(inner, f"{where}.{key}", unsafe) for key, inner in value.items()}
        unchanged = all(parts[key] is inner for key, inner in value.items())
        return value if unchanged else parts
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        listed = [_plain(inner, f"{where}[{n}]", unsafe) for n, inner in enumerate(value)]
        unchanged = all(new is old for new, old in zip(listed, value, strict=True))
        return value if unchanged else kind(listed)
    if isinstance(value, (set, frozenset)):
        return value
    unsafe.append(f"{where} ({kind.__module__}.{kind.__qualname__})")
    return value
