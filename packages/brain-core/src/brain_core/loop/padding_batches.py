"""Padding batches: copies of other ranks' batches, processed with zero weight."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from brain_dist import get_world_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["pad_last_round", "without_gradients", "zero_weight"]


def pad_last_round(loader: Any, *, pad: bool, elastic: bool) -> None:
    """Configure how a training loader shares its batches between ranks, where it can be.

    Parameters
    ----------
    loader : object
        A `SaveableDataLoader`, or a `LoopedLoader` of one; any other stays as it is.
    pad : bool
        Keep the batches of an incomplete last round whole, and give ranks without a batch of their
        own a padding batch.
    elastic : bool
        On a number of ranks that does not reach a saved position, shard the rest of the epoch anew.
    """
    loader = getattr(loader, "loader", loader)
    if not hasattr(loader, "last_round"):
        return
    if pad and get_world_size() > 1:
        loader.last_round = "pad"
    if elastic:
        loader.elastic = True


def zero_weight(loss: torch.Tensor) -> torch.Tensor:
    """Return zero, with a graph that reaches the same parameters as the loss."""
    return torch.nan_to_num(loss, nan=0.0, posinf=0.0, neginf=0.0) * 0.0


@contextmanager
def without_gradients(module: torch.nn.Module) -> Iterator[None]:
    """Make every backward of a forward in this block add zero to the gradients, never NaN.

    A loss of weight zero is not enough: where an activation is NaN or infinite, zero times it is
    NaN. Backward still runs and is shared between the ranks, which wait for it.
    """
    handles: list[Any] = []

    def zero_gradients_of(parameters: Iterable[torch.Tensor]) -> None:
        # Before the gradient is accumulated, and so before DDP and FSDP2 send it.
        handles.extend(
            p.register_hook(torch.zeros_like)  # type: ignore[no-untyped-call]  # torch's
            for p in parameters
            if p.requires_grad
        )

    def zero_gathered(part: torch.nn.Module, _: Any) -> None:
        # FSDP2 computes with other tensors than it holds: they exist when a forward begins.
        zero_gradients_of(part.parameters(recurse=False))

    zero_gradients_of(module.parameters())
    if any(hasattr(p, "full_tensor") for p in module.parameters()):
        handles += [part.register_forward_pre_hook(zero_gathered) for part in module.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
