"""Copies of states, into memory that is kept from save to save."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_KEPT_DEVICES = ("cpu", "cuda", "xpu")

# dtype, shape, whether in pinned memory
_Kind = tuple[torch.dtype, torch.Size, bool]


class Snapshots:
    """Copies states so that training can change the originals.

    The copies live in buffers that are used again by the next save, which spares the kernel the
    handing out of fresh pages; what comes from an accelerator goes to pinned memory.
    """

    def __init__(self) -> None:
        self._kept: dict[_Kind, list[torch.Tensor]] = {}
        self._free: dict[_Kind, list[torch.Tensor]] = {}
        self._copied: dict[int, torch.Tensor] = {}
        self._used: list[tuple[_Kind, torch.Tensor]] = []

    def begin(self) -> None:
        """Start a save: the buffers of the one before are free."""
        self._free = {key: list(buffers) for key, buffers in self._kept.items()}
        self._copied = {}
        self._used = []

    def end(self) -> None:
        """Finish copying: wait for the accelerator, and keep only the buffers that were used."""
        if any(pinned for (_, _, pinned), _ in self._used):
            torch.accelerator.synchronize() if hasattr(
                torch, "accelerator"
            ) else torch.cuda.synchronize()
        self._kept = {}
        for key, buffer in self._used:
            self._kept.setdefault(key, []).append(buffer)
        self._free = {}
        self._copied = {}

    def copy(self, state: Any) -> Any:
        """Return a copy of a state, tensors that share memory sharing it in the copy too."""
        if isinstance(state, torch.Tensor):
            return self._copy_tensor(state)
        if isinstance(state, Mapping) and type(state).__module__ in ("builtins", "collections"):
            pairs = {key: self.copy(value) for key, value in state.items()}
            return pairs if type(state) is dict else _same_kind(state, pairs)
        if type(state) in (list, tuple):
            return type(state)(self.copy(value) for value in state)
        if isinstance(state, (str, bytes, int, float, bool, type(None))):
            return state
        return copy.deepcopy(state)

    def _copy_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if not _is_plain(tensor):
            return tensor.detach().clone().cpu()
        storage = tensor.untyped_storage()
        identity = storage._cdata  # noqa: SLF001 - the only identity a storage has
        buffer = self._copied.get(identity)
        if buffer is None:
            buffer = self._copied[identity] = self._copy_storage(tensor, storage)
        same = buffer.dtype == tensor.dtype and buffer.shape == tensor.shape
        if same and buffer.stride() == tensor.stride():
            return buffer
        return torch.empty(0, dtype=tensor.dtype).set_(
            buffer.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
        )

    def _copy_storage(self, tensor: torch.Tensor, storage: torch.UntypedStorage) -> torch.Tensor:
        """Copy a whole storage: as the tensor if that covers it, else as bytes."""
        source = tensor.detach()
        if not tensor.is_contiguous() or tensor.nbytes != storage.nbytes():
            source = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        pinned = tensor.device.type != "cpu"
        key = (source.dtype, source.shape, pinned)
        free = self._free.get(key)
        buffer = free.pop() if free else torch.empty_like(source, device="cpu", pin_memory=pinned)
        buffer.copy_(source, non_blocking=pinned)
        self._used.append((key, buffer))
        return buffer


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        type(tensor) in _PLAIN
        and tensor.device.type in _KEPT_DEVICES
        and tensor.layout == torch.strided
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
    )


def _same_kind(state: Mapping[Any, Any], pairs: dict[Any, Any]) -> Any:
    made = copy.copy(state)
    for key, value in pairs.items():
        made[key] = value  # type: ignore[index]  # a mutable mapping of the standard library
    return made
