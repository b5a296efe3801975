"""Batches moved to a device, the next one during the computation of the current one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


def prefetch_to_device(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """Yield batches on a device.

    On CUDA the copy of the next batch is queued on a side stream before the current one is yielded,
    so that both overlap. Pin the batches' memory, otherwise the copy blocks the host. On other
    devices each batch is copied when it is requested.

    Parameters
    ----------
    batches
        Tensors, objects with a ``to`` method, and lists, tuples and mappings of those.
    device
        The target device.
    """
    if device.type != "cuda":
        return (to_device(batch, device) for batch in batches)
    return _side_stream(batches, device)


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a batch with ``non_blocking=True``; other values are unchanged."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if hasattr(batch, "to"):
        return _moved(batch, device)
    if isinstance(batch, Mapping):
        return type(batch)((key, to_device(value, device)) for key, value in batch.items())  # type: ignore[call-arg]  # as dict
    if isinstance(batch, (list, tuple)):
        values = [to_device(value, device) for value in batch]
        is_named = hasattr(batch, "_fields")  # a named tuple takes its values one by one
        return type(batch)(*values) if is_named else type(batch)(values)
    return batch


def _moved(batch: Any, device: torch.device) -> Any:
    try:
        moved = batch.to(device, non_blocking=True)
    except TypeError:  # the user's `to` accepts a device only
        moved = batch.to(device)
    return batch if moved is None else moved  # one that moves itself may return nothing


def _side_stream(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # not annotated in torch

    def queue_copy() -> Any:
        batch = next(batches, _END)
        if batch is _END:
            return _END
        # Memory of a freed batch is reused only after the work queued so far, which was the last to
        # read it. This makes record_stream unnecessary.
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            return to_device(batch, device)

    following = queue_copy()
    while following is not _END:
        torch.cuda.current_stream(device).wait_stream(side)
        current, following = following, queue_copy()
        yield current
        del current  # freed before the next is copied


_END = object()
