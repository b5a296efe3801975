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
    """Weighs the loss of each batch, so that batches of unequal size do not bias a step.

    With losses that are means over a batch, the gradient of a step becomes that of the mean over
    all samples (or tokens, or whatever the weights count) of all batches of the step on all ranks::

        weighted = WeightedGradients()
        for batch in batches_of_the_step:
            weighted.scale(loss_of(batch), weight=len(batch)).backward()
        weighted.normalize(model.parameters())
        optimizer.step()

    It works with DDP and FSDP2, which average gradients over the ranks, and in one process.
    """

    def __init__(self) -> None:
        self._total_weight: float | torch.Tensor = 0.0

    def scale(self, loss: torch.Tensor, weight: float | torch.Tensor) -> torch.Tensor:
        """Return the loss to call backward on, and add its weight to the step.

        Parameters
        ----------
        loss : torch.Tensor
            A mean over what `weight` counts.
        weight : float or torch.Tensor
            Zero or more; a tensor of one element is not read here.
        """
        if isinstance(weight, torch.Tensor):
            weight = weight.detach()
        self._total_weight = self._total_weight + weight
        return loss * weight

    def normalize(self, parameters: Iterable[torch.Tensor]) -> None:
        """Divide the gradients by the weights of all ranks, and start a new step.

        Every rank has to call it, after the last backward and before clipping.  It does not wait
        for the device.  If the weights of all ranks are zero, the gradients become zero.

        Parameters
        ----------
        parameters : iterable of torch.Tensor
            Those that the step updates.
        """
        gradients = [_local_gradient(p.grad) for p in parameters if p.grad is not None]
        device = gradients[0].device if gradients else torch.device("cpu")
        dtype = torch.float32 if device.type == "mps" else torch.float64
        # A fill does not wait for the device, a copy from the host does.
        total = torch.zeros((), dtype=dtype, device=device) + self._total_weight
        self._total_weight = 0.0
        ddp_all_reduce(total, distributed.ReduceOp.SUM)
        factor = torch.where(total > 0, get_world_size() / total, torch.zeros_like(total))
        with torch.no_grad():
            for gradient in gradients:
                gradient.mul_(factor.to(gradient))


def _local_gradient(gradient: torch.Tensor) -> torch.Tensor:
    # An FSDP2 gradient is a DTensor that holds this rank's shard.
    to_local = getattr(gradient, "to_local", None)
    local = gradient if to_local is None else to_local()
    assert isinstance(local, torch.Tensor)
    return local
