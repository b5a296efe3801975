"""Batches brought to a device, the next one while the present one computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


def copied_ahead(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """Yield batches on a device.

    On CUDA the copy of the next batch is queued on a side stream before the present one is handed
    out, so that it runs while the present one computes; pin the batches' memory for the copy not to
    hold the host up. On other devices each batch is copied when it is asked for.

    Parameters
    ----------
    batches
        Tensors, objects with a ``to`` method, and lists, tuples and mappings of those.
    device
        Where to.
    """
    if device.type != "cuda":
        return (to_device(batch, device) for batch in batches)
    return _side_stream(batches, device)


def to_device(batch: Any, device: torch.device) -> Any:
    """Move a batch, its tensors without waiting; what is not a tensor stays."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if hasattr(batch, "to"):
        return _moved(batch, device)
    if isinstance(batch, Mapping):
        return type(batch)((key, to_device(value, device)) for key, value in batch.items())  # type: ignore[call-arg]  # as dict
    if isinstance(batch, (list, tuple)):
        values = [to_device(value, device) for value in batch]
        named = hasattr(batch, "_fields")  # a named tuple takes its values one by one
        return type(batch)(*values) if named else type(batch)(values)
    return batch


def _moved(batch: Any, device: torch.device) -> Any:
    try:
        return batch.to(device, non_blocking=True)
    except TypeError:  # a `to` of the user's that takes a device only
        return batch.to(device)


def _side_stream(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's own lack

    def queue_copy() -> Any:
        batch = next(batches, _END)
        if batch is _END:
            return _END
        # Memory of a batch that was let go is used again only after the work queued so far, which
        # was the last to read it. This is what makes record_stream unnecessary.
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            return to_device(batch, device)

    ahead = queue_copy()
    while ahead is not _END:
        torch.cuda.current_stream(device).wait_stream(side)
        present, ahead = ahead, queue_copy()
        yield present
        del present  # let go before the next is made


_END = object()
