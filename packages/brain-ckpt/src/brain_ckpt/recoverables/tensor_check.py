"""Check whether torch's safe loader reads a tensor."""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any

import torch

from brain_ckpt.compat import default_safe_globals
from brain_ckpt.recoverables.safe_globals import full_name

if TYPE_CHECKING:
    from brain_ckpt.recoverables.safe_globals import SafeGlobals

_USUAL = (torch.Tensor, torch.nn.Parameter)


def is_loadable(tensor: torch.Tensor, safe_globals: SafeGlobals) -> bool:
    """Return whether torch's safe loader reads a tensor, without writing its data."""
    if type(tensor) in _USUAL and not tensor.__dict__:
        return True
    pickler = _GlobalsPickler()
    try:
        pickler.dump(tensor)
    except Exception:  # noqa: BLE001 - a tensor subclass can raise anything
        return False
    default = default_safe_globals()
    return all(
        full_name(used) in default or safe_globals.name(used) is not None for used in pickler.used
    )


class _GlobalsPickler(pickle.Pickler):
    """Collects the classes and functions that a pickle names; the data of tensors is skipped."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), protocol=2)
        self.used: list[Any] = []

    def persistent_id(self, obj: Any) -> str | None:
        is_storage = isinstance(obj, torch.storage.TypedStorage) or torch.is_storage(obj)
        return "storage" if is_storage else None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type) or (callable(obj) and hasattr(obj, "__qualname__")):
            self.used.append(obj)
        return NotImplemented
