"""Gradients before a step: scaling, clipping, and the check that they are finite."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

import torch

from brain_core.loop.running_mean import reads_at_once

__all__ = [
    "can_step_on_device",
    "clip_gradients",
    "drop_nonfinite_gradients",
    "gradients_of",
    "scale_gradients",
    "split_vectors",
    "step_on_device",
    "step_where_finite",
    "step_without_overflow",
]

Optimizers = Collection[torch.optim.Optimizer]
_Kind = tuple[type[torch.Tensor], torch.device, torch.dtype, bool]  # the last: requires_grad
_FOREACH_DEVICES = ("cpu", "cuda")


def gradients_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return the gradients of all of an optimizer's parameter groups; of sparse ones the values.

    Sparse gradients, as of ``Embedding(sparse=True)``, are coalesced in place: each row is there
    once, so that the norm of the values is the norm of the gradient.
    """
    return [
        _dense(parameter, gradient) if gradient.is_sparse else gradient
        for group in optimizer.param_groups
        for parameter in group["params"]
        if (gradient := parameter.grad) is not None
    ]


def scale_gradients(optimizers: Optimizers, factor: float) -> None:
    """Multiply all gradients in place."""
    for optimizer in optimizers:
        gradients = gradients_of(optimizer)
        if gradients:
            torch._foreach_mul_(gradients, factor)  # torch.optim uses it, too


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
    gradients = gradients_of(optimizer)
    kinds = {(type(g), g.device, g.dtype, g.requires_grad) for g in gradients}
    norm = _total_norm(gradients, kinds)
    if any(cls is not torch.Tensor for cls, *_ in kinds):
        # With sharded parameters the norm is a DTensor; its full tensor is the norm of all shards.
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        gradients = [g.to_local() if hasattr(g, "to_local") else g for g in gradients]
    if max_norm >= 0 and not _is_within(norm, max_norm):
        # As torch's clip_grads_with_norm_, which takes no sparse gradients, and which in torch 2.9
        # adds the constant to the norm of each shard.
        factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        devices = {device for _, device, *_ in kinds}
        for device in devices:
            here = gradients if len(devices) == 1 else [g for g in gradients if g.device == device]
            torch._foreach_mul_(here, factor.to(device))  # as above
    return norm


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


def can_step_on_device(optimizers: Optimizers) -> bool:
    """Return whether all optimizers can leave out a step by a flag that only the device knows.

    torch's fused kernels can. Not SGD with momentum, whose first step, if it is left out, leaves
    memory that was never written as its momentum; and not kernels of sharded or sparse tensors.
    """
    return all(
        getattr(optimizer, "_step_supports_amp_scaling", False)
        and not any(group.get("momentum") for group in optimizer.param_groups)
        and all(
            parameter.grad is None or _is_plain(parameter.grad)
            for group in optimizer.param_groups
            for parameter in group["params"]
        )
        for optimizer in optimizers
    )


def step_on_device(optimizers: Optimizers, norms: list[torch.Tensor]) -> torch.Tensor:
    """Step all optimizers; their kernels change nothing if a gradient is not finite.

    Parameters
    ----------
    optimizers : collection of torch.optim.Optimizer
        Those for which `can_step_on_device` is true. They take the flag as an attribute, as from
        `torch.amp.GradScaler`.
    norms : list of torch.Tensor
        The norms of their gradients, each a scalar.

    Returns
    -------
    torch.Tensor
        A scalar on the first norm's device: 1.0 if the step was left out, else 0.0.
    """
    finite = torch.stack([norm.to(norms[0].device) for norm in norms]).isfinite().all()
    skipped = finite.logical_not().float()
    for optimizer in optimizers:
        optimizer.found_inf = skipped  # type: ignore[attr-defined]  # torch's protocol
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf  # type: ignore[attr-defined]
    return skipped


def step_without_overflow(optimizers: Optimizers, scaler: torch.amp.GradScaler) -> bool:
    """Step the optimizers whose gradients did not overflow; return whether that was all of them.

    Parameters
    ----------
    optimizers : collection of torch.optim.Optimizer
        Their gradients were unscaled by ``scaler.unscale_``.
    scaler : torch.amp.GradScaler
        Its scale is updated.
    """
    # As scaler.step, which reads each optimizer's flags by themselves; the scale tells no more.
    flags = {
        optimizer: list(scaler._found_inf_per_device(optimizer).values())  # noqa: SLF001  # torch's
        for optimizer in optimizers
    }
    overflowed = iter(_read_together([flag for of_one in flags.values() for flag in of_one]))
    taken = True
    for optimizer, of_one in flags.items():
        found = [next(overflowed) for _ in of_one]
        if any(found):
            taken = False
        else:
            optimizer.step()
    scaler.update()
    return taken


def drop_nonfinite_gradients(parameters: Mapping[str, torch.nn.Parameter]) -> list[str]:
    """Remove the gradients that hold a NaN or an infinity; return the names of their parameters."""
    finite = {
        name: torch.isfinite(_dense(parameter, gradient)).all()
        for name, parameter in parameters.items()
        if (gradient := parameter.grad) is not None
    }
    read = _read_together(list(finite.values()))
    bad = [name for name, is_finite in zip(finite, read, strict=True) if not is_finite]
    for name in bad:
        parameters[name].grad = None
    return bad


def split_vectors(module: torch.nn.Module) -> list[dict[str, object]]:
    """Group trainable parameters: vectors without weight decay, then all others.

    Biases and the weights of normalization layers have one dimension and no weight decay. The
    order of the groups is SpeechBrain's, so that its optimizer states can be loaded.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim == 1], "weight_decay": 0.0},
        {"params": [p for p in trainable if p.ndim != 1]},
    ]


def _dense(parameter: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return a parameter's gradient, or the values of a sparse one, to be changed in place."""
    if not gradient.is_sparse:
        return gradient
    parameter.grad = gradient.coalesce()
    return parameter.grad.values()


def _total_norm(gradients: list[torch.Tensor], kinds: set[_Kind]) -> torch.Tensor:
    """Return the 2-norm of all gradients together.

    Those of one kind, by far the most, are given to torch's kernel at once; its `get_total_norm`
    groups them first. Both give the same bits.
    """
    if len(kinds) == 1:
        cls, device, _, has_graph = next(iter(kinds))
        if cls is torch.Tensor and device.type in _FOREACH_DEVICES and not has_graph:
            norms = torch._foreach_norm(gradients)  # noqa: SLF001  # get_total_norm uses it, too
            return torch.linalg.vector_norm(torch.stack(norms))  # type: ignore[no-any-return]  # torch's
    return torch.nn.utils.get_total_norm(gradients)


def _is_within(norm: torch.Tensor, max_norm: float) -> bool:
    """Return whether clipping would multiply by 1.0, if that can be seen without waiting."""
    return reads_at_once(norm) and norm.item() + 1e-6 < 0.9 * max_norm  # far from any rounding


def _is_plain(gradient: torch.Tensor) -> bool:
    return type(gradient) is torch.Tensor and gradient.layout is torch.strided


def _all_finite(norms: list[torch.Tensor]) -> bool:
    return all(map(math.isfinite, _read_together(norms)))


def _read_together(numbers: list[torch.Tensor]) -> list[float]:
    """Return tensors of one element as numbers, waiting for their device once."""
    if len(numbers) == 1:
        return [numbers[0].item()]
    if not numbers:
        return []
    whole = [n.full_tensor() if hasattr(n, "full_tensor") else n for n in numbers]
    values: list[float] = torch.stack([n.to(whole[0].device) for n in whole]).tolist()
    return values
