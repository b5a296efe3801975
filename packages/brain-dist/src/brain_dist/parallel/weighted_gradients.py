"""Gradients averaged over samples or tokens instead of over batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import distributed

from brain_dist.collectives import ddp_all_reduce
from brain_dist.world import get_world_size

if TYPE_CHECKING:
    from collections.abc import Iterable


class WeightedGradients:
    """Weighs each batch's loss, so that neither a short batch nor an unequal rank biases a step.

    With losses that are means over a batch, the gradient of a step becomes that of the mean over
    all samples (or tokens, or whatever the weights count) of all batches of all ranks in it::

        weighted = WeightedGradients()
        for batch in window:
            weighted.scale(loss_of(batch), weight=len(batch)).backward()
        weighted.normalize(model.parameters())
        optimizer.step()

    It holds for DDP and FSDP2, which average gradients over the ranks, and for one process.
    """

    def __init__(self) -> None:
        self._total: float | torch.Tensor = 0.0

    def scale(self, loss: torch.Tensor, weight: float | torch.Tensor) -> torch.Tensor:
        """Return the loss to call backward on, and count its weight.

        Parameters
        ----------
        loss : torch.Tensor
            A mean over what `weight` counts.
        weight : float or torch.Tensor
            Zero or more; a tensor of one element is not read here.
        """
        if isinstance(weight, torch.Tensor):
            weight = weight.detach()
        self._total = self._total + weight
        return loss * weight

    def normalize(self, parameters: Iterable[torch.Tensor]) -> None:
        """Divide the gradients by the weights of all ranks, and start a new step.

        Every rank has to call it, after the last backward and before clipping.  It waits for no
        device.  Where no rank has counted any weight the gradients become zero.

        Parameters
        ----------
        parameters : iterable of torch.Tensor
            Those that the step will change.
        """
        gradients = [_local(p.grad) for p in parameters if p.grad is not None]
        device = gradients[0].device if gradients else torch.device("cpu")
        dtype = torch.float32 if device.type == "mps" else torch.float64
        # A fill, unlike a copy from the host, does not wait for the device.
        total = torch.zeros((), dtype=dtype, device=device) + self._total
        self._total = 0.0
        ddp_all_reduce(total, distributed.ReduceOp.SUM)
        factor = torch.where(total > 0, get_world_size() / total, torch.zeros_like(total))
        with torch.no_grad():
            for gradient in gradients:
                gradient.mul_(factor.to(gradient))


def _local(gradient: torch.Tensor) -> torch.Tensor:
    # An FSDP2 gradient is a DTensor around this rank's slice.
    to_local = getattr(gradient, "to_local", None)
    local = gradient if to_local is None else to_local()
    assert isinstance(local, torch.Tensor)
    return local
