"""Gradients before a step: scaling, clipping, and the check that they are finite."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

import torch

__all__ = [
    "clip_gradients",
    "drop_nonfinite_gradients",
    "gradients_of",
    "scale_gradients",
    "split_vectors",
    "step_where_finite",
]

Optimizers = Collection[torch.optim.Optimizer]


def gradients_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return the gradients of all of an optimizer's parameter groups."""
    return [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]


def scale_gradients(optimizers: Optimizers, factor: float) -> None:
    """Multiply all gradients in place."""
    for optimizer in optimizers:
        gradients = gradients_of(optimizer)
        if gradients:
            torch._foreach_mul_(gradients, factor)  # torch.optim itself is built on it


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float) -> torch.Tensor:
    """Clip the gradients of all groups by one global norm, and return the norm before.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Its parameters' gradients are clipped in place.
    max_norm : float
        The largest norm allowed; below zero, gradients are not clipped.

    Returns
    -------
    torch.Tensor
        The 2-norm before clipping, a scalar: not finite if any gradient is not. Zero without
        gradients.
    """
    if max_norm < 0:
        norm = torch.nn.utils.get_total_norm(gradients_of(optimizer))
    else:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    # With sharded parameters it is a DTensor, whose full tensor is the norm of all shards.
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def step_where_finite(optimizers: Optimizers, norms: Iterable[torch.Tensor]) -> bool:
    """Step all optimizers if all gradients are finite, and none otherwise.

    Returns
    -------
    bool
        Whether the step was taken.
    """
    norms = list(norms)
    if norms and not _all_finite(norms):
        return False
    for optimizer in optimizers:
        optimizer.step()
    return True


def drop_nonfinite_gradients(parameters: Mapping[str, torch.nn.Parameter]) -> list[str]:
    """Remove the gradients that hold a NaN or an infinity; return the names of their parameters."""
    bad = [
        name
        for name, parameter in parameters.items()
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
    ]
    for name in bad:
        parameters[name].grad = None
    return bad


def split_vectors(module: torch.nn.Module) -> list[dict[str, object]]:
    """Group trainable parameters: vectors without weight decay, then all others.

    Biases and the weights of norms have one dimension; weight decay does not help them. The order
    of the groups is SpeechBrain's, so that its optimizer states fit.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim == 1], "weight_decay": 0.0},
        {"params": [p for p in trainable if p.ndim != 1]},
    ]


def _all_finite(norms: list[torch.Tensor]) -> bool:
    if len(norms) == 1:
        return math.isfinite(norms[0].item())
    return bool(torch.isfinite(torch.stack(norms)).all())
