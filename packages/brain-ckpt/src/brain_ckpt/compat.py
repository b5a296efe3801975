"""Differences between the supported versions of torch."""

from __future__ import annotations

import contextlib
import inspect
import threading
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

_crc_lock = threading.Lock()
_crc_users = 0
_crc_before = True


def load_distributed(targets: dict[str, Any], reader: Any) -> None:
    """Fill tensors from a distributed checkpoint without communication between ranks."""
    from torch.distributed.checkpoint import state_dict_loader

    if "no_dist" in inspect.signature(state_dict_loader.load).parameters:
        state_dict_loader.load(targets, storage_reader=reader, no_dist=True)
    else:  # before torch 2.7
        state_dict_loader._load_state_dict(  # noqa: SLF001 - the public function communicates
            state_dict=targets, storage_reader=reader, no_dist=True
        )


def default_safe_globals() -> Container[str]:
    """Return the names of classes and functions that torch's safe loader accepts by default."""
    from torch import _weights_only_unpickler

    names: Container[str] = _weights_only_unpickler._get_allowed_globals()  # noqa: SLF001 - no public way
    return names


@contextlib.contextmanager
def without_torch_crc() -> Iterator[None]:
    """Turn off the CRC-32 of torch.save, which torch.load never checks.

    The setting is global to the process: the first user turns it off, the last restores it.
    """
    global _crc_users, _crc_before  # noqa: PLW0603 - mirrors a global setting of torch
    with _crc_lock:
        if _crc_users == 0:
            _crc_before = torch.serialization.get_crc32_options()
            torch.serialization.set_crc32_options(False)  # type: ignore[no-untyped-call, unused-ignore]  # typed in some versions only
        _crc_users += 1
    try:
        yield
    finally:
        with _crc_lock:
            _crc_users -= 1
            if _crc_users == 0:
                torch.serialization.set_crc32_options(_crc_before)  # type: ignore[no-untyped-call, unused-ignore]  # typed in some versions only
