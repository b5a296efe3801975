"""Release the pages of a mapped state file as soon as each tensor is copied from it.

A module copies its state from a file that is mapped into memory.  The pages stay mapped as long as
the state does, so that at the end the whole file would count as memory of the process, beside the
module.  The pages are those of the page cache, and a page that is used again is read again.
"""

from __future__ import annotations

import functools
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Smaller tensors share their pages with others.
_MIN_BYTES = 2**18
_MAPS = Path("/proc/self/maps")


class ReleaseMappedPages(TorchFunctionMode):
    """While it is active, copying from a tensor of a state releases the pages of that tensor.

    Only pages of private mappings of the file are released, and none of a tensor that was written
    to in place.  Without ``/proc/self/maps``, as on Windows and macOS, nothing is released.

    Parameters
    ----------
    state : object
        A state whose tensors may be mapped.
    file : Path
        The file.
    """

    def __init__(self, state: Any, file: Path) -> None:
        super().__init__()
        large = [tensor for tensor in _tensors(state) if tensor.nbytes >= _MIN_BYTES]
        mapped = _mappings(file) if large else []
        # By address: modules and wrappers pass other objects for the same memory.
        self._versions = {
            tensor.data_ptr(): (tensor, tensor._version)  # noqa: SLF001 - there is no public counter
            for tensor in large
            if any(
                low <= tensor.data_ptr() and tensor.data_ptr() + tensor.nbytes <= high
                for low, high in mapped
            )
        }

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch; after a copy, release the pages of its source."""
        del types
        result = func(*args, **(kwargs or {}))
        if func is torch.Tensor.copy_ and len(args) > 1 and type(args[1]) is torch.Tensor:
            self._release(args[1])
        return result

    def _release(self, source: torch.Tensor) -> None:
        if source.device.type != "cpu":
            return
        tensor, version = self._versions.get(source.data_ptr(), (None, 0))
        if tensor is not None and tensor._version == version == source._version:  # noqa: SLF001 - as above
            _release_pages(tensor.data_ptr(), tensor.nbytes)


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        if type(state) is torch.Tensor and state.device.type == "cpu" and state.is_contiguous():
            yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from _tensors(value)


def _mappings(file: Path) -> list[tuple[int, int]]:
    """Return the first and last address of each private mapping of a file in this process."""
    found: list[tuple[int, int]] = []
    try:
        inode = str(os.stat(file).st_ino)
        lines = _MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:
        addresses, permissions, _, _, number, *_ = line.split(maxsplit=5)
        if number == inode and permissions.endswith("p"):
            low, high = (int(address, 16) for address in addresses.split("-"))
            found.append((low, high))
    return found


def _release_pages(address: int, length: int) -> None:
    madvise = _madvise()
    low = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    high = (address + length) // mmap.PAGESIZE * mmap.PAGESIZE
    if madvise is not None and high > low:
        madvise(low, high - low, mmap.MADV_DONTNEED)


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    # Python offers it for its own mappings only.
    import ctypes

    if not hasattr(mmap, "MADV_DONTNEED"):
        return None
    try:
        call = ctypes.CDLL(None).madvise
    except (AttributeError, OSError, TypeError):
        return None
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return cast("Callable[[int, int, int], int]", call)
