"""Copies of states in memory that is reused from save to save."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

_TENSOR_TYPES = (torch.Tensor, torch.nn.Parameter)
_DEVICES = ("cpu", "cuda", "xpu")

# dtype, shape, whether it is in pinned memory
_BufferKey = tuple[torch.dtype, torch.Size, bool]


class SnapshotBuffers:
    """Copies states so that training can change the originals.

    The next save reuses the buffers, which saves the kernel the allocation of new pages.  Copies
    from an accelerator are in pinned memory.
    """

    def __init__(self) -> None:
        self._buffers: dict[_BufferKey, list[torch.Tensor]] = {}
        self._free: dict[_BufferKey, list[torch.Tensor]] = {}
        self._buffer_of_storage: dict[int, torch.Tensor] = {}
        self._used: list[tuple[_BufferKey, torch.Tensor]] = []

    def begin(self) -> None:
        """Start a snapshot; the buffers of the previous one are free."""
        self._free = {key: list(buffers) for key, buffers in self._buffers.items()}
        self._buffer_of_storage = {}
        self._used = []

    def end(self) -> None:
        """Finish a snapshot: wait for the accelerator and drop unused buffers."""
        if any(pinned for (_, _, pinned), _ in self._used):
            torch.accelerator.synchronize()
        self._buffers = {}
        for key, buffer in self._used:
            self._buffers.setdefault(key, []).append(buffer)
        self._free = {}
        self._buffer_of_storage = {}

    def copy(self, state: Any) -> Any:
        """Return a copy of a state; tensors that share memory share it in the copy, too."""
        if isinstance(state, torch.Tensor):
            copied = self._copy_tensor(state)
            if type(state) is torch.nn.Parameter:
                return torch.nn.Parameter(copied, state.requires_grad)
            return copied
        if isinstance(state, Mapping) and type(state).__module__ in ("builtins", "collections"):
            pairs = {key: self.copy(value) for key, value in state.items()}
            return pairs if type(state) is dict else _copy_mapping(state, pairs)
        if type(state) in (list, tuple):
            return type(state)(self.copy(value) for value in state)
        if isinstance(state, (str, bytes, int, float, bool, type(None))):
            return state
        return copy.deepcopy(state)

    def _copy_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if not _is_copied_to_buffer(tensor):
            return tensor.detach().clone().cpu()
        storage = tensor.untyped_storage()
        identity = storage._cdata  # noqa: SLF001 - the only identity of a storage
        buffer = self._buffer_of_storage.get(identity)
        if buffer is None:
            buffer = self._buffer_of_storage[identity] = self._copy_storage(tensor, storage)
        same_shape = buffer.dtype == tensor.dtype and buffer.shape == tensor.shape
        if same_shape and buffer.stride() == tensor.stride():
            return buffer
        return torch.empty(0, dtype=tensor.dtype).set_(
            buffer.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
        )

    def _copy_storage(self, tensor: torch.Tensor, storage: torch.UntypedStorage) -> torch.Tensor:
        """Copy a storage: as the tensor if that covers it, else as bytes."""
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


def _is_copied_to_buffer(tensor: torch.Tensor) -> bool:
    return (
        type(tensor) in _TENSOR_TYPES
        and tensor.device.type in _DEVICES
        and tensor.layout == torch.strided
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
    )


def _copy_mapping(state: Mapping[Any, Any], pairs: dict[Any, Any]) -> Any:
    copied = copy.copy(state)
    for key, value in pairs.items():
        copied[key] = value  # type: ignore[index]  # a mutable mapping of the standard library
    return copied
