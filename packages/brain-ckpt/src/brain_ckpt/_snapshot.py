"""Copies of states, into memory that is kept from save to save."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch


class Snapshots:
    """Copies states so that training can change the originals.

    The copies live in buffers that are used again by the next save, which spares the kernel the
    handing out of fresh pages; what comes from an accelerator goes to pinned memory.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, bool], list[torch.UntypedStorage]] = {}
        self._free: dict[tuple[int, bool], list[torch.UntypedStorage]] = {}
        self._copied: dict[int, torch.UntypedStorage] = {}
        self._used: list[tuple[tuple[int, bool], torch.UntypedStorage]] = []

    def begin(self) -> None:
        """Start a save: the buffers of the one before are free."""
        self._free = {key: list(buffers) for key, buffers in self._kept.items()}
        self._copied = {}
        self._used = []

    def end(self) -> None:
        """Finish copying: wait for the accelerator, and keep only the buffers that were used."""
        if any(pinned for (_, pinned), _ in self._used):
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
        tensor = tensor.detach()
        if (
            type(tensor) is not torch.Tensor
            or tensor.layout != torch.strided
            or tensor.is_quantized
        ):
            return tensor.clone().cpu()
        if tensor.is_conj() or tensor.is_neg() or tensor.device.type not in ("cpu", "cuda", "xpu"):
            return tensor.clone().cpu()
        storage = tensor.untyped_storage()
        buffer = self._copied.get(storage._cdata)  # noqa: SLF001 - the only identity a storage has
        if buffer is None:
            buffer = self._buffer(storage)
            # whole storages as bytes: (nbytes,)
            _as_bytes(buffer).copy_(_as_bytes(storage), non_blocking=True)
            self._copied[storage._cdata] = buffer  # noqa: SLF001 - as above
        return torch.empty(0, dtype=tensor.dtype).set_(
            buffer, tensor.storage_offset(), tensor.size(), tensor.stride()
        )

    def _buffer(self, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        pinned = storage.device.type != "cpu"
        key = (storage.nbytes(), pinned)
        free = self._free.get(key)
        if free:
            buffer = free.pop()
        else:
            fresh = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=pinned)
            buffer = fresh.untyped_storage()
        self._used.append((key, buffer))
        return buffer


def _as_bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _same_kind(state: Mapping[Any, Any], pairs: dict[Any, Any]) -> Any:
    made = copy.copy(state)
    for key, value in pairs.items():
        made[key] = value  # type: ignore[index]  # a mutable mapping of the standard library
    return made
