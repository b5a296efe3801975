"""Batches that a rank is handed only to stay in step with the others: they weigh nothing."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from brain_dist import get_world_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["deal_whole_batches", "without_gradients", "worthless"]


def deal_whole_batches(loader: Any, *, fill: bool, elastic: bool) -> None:
    """Tell a training loader how to share its data between ranks, where it can be told.

    Parameters
    ----------
    loader : object
        A `SaveableDataLoader`, or a `LoopedLoader` of one; any other stays as it is.
    fill : bool
        Keep the micro-batches of an incomplete last round whole, and hand out fillers.
    elastic : bool
        On a number of ranks that does not reach a saved position, deal out anew what is left.
    """
    loader = getattr(loader, "loader", loader)
    if not hasattr(loader, "last_round"):
        return
    if fill and get_world_size() > 1:
        loader.last_round = "fill"
    if elastic:
        loader.elastic = True


def worthless(loss: torch.Tensor) -> torch.Tensor:
    """Return zero, with a graph that reaches the same parameters as the loss."""
    return torch.nan_to_num(loss, nan=0.0, posinf=0.0, neginf=0.0) * 0.0


@contextmanager
def without_gradients(module: torch.nn.Module) -> Iterator[None]:
    """Let every backward of a forward in this block add zero to the gradients, never NaN.

    A loss of weight zero is not enough: where an activation is NaN or infinite, zero times it is
    NaN. Backward still runs and is shared between the ranks, which wait for it.
    """
    handles: list[Any] = []

    def silence(parameters: Iterable[torch.Tensor]) -> None:
        # Before the gradient is added up, and so before DDP and FSDP2 send it.
        handles.extend(
            p.register_hook(torch.zeros_like)  # type: ignore[no-untyped-call]  # torch's
            for p in parameters
            if p.requires_grad
        )

    def silence_gathered(part: torch.nn.Module, _: Any) -> None:
        # FSDP2 computes with other tensors than it holds: they are there when a forward begins.
        silence(part.parameters(recurse=False))

    silence(module.parameters())
    if any(hasattr(p, "full_tensor") for p in module.parameters()):
        handles += [part.register_forward_pre_hook(silence_gathered) for part in module.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
