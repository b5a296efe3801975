"""The settings of a script that a run depends on, as plain values that a checkpoint holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LRScheduler

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from brain_core.options.run_options import RunOptions

__all__ = ["computation_settings", "data_settings", "optimizer_class", "optimizer_options"]
__all__ += ["use_options"]

_COMPUTATION = (
    "grad_accumulation_factor",
    "precision",
    "max_grad_norm",
    "skip_nonfinite_grads",
    "remove_vector_weight_decay",
    "parallel",
    "compile",
    "jit",
)
_NOT_OPTIONS = ("params", "param_names", "initial_lr")


def data_settings(loader: Any) -> dict[str, Any]:
    """Return what decides the batches of an epoch, without what depends on ranks and workers.

    Parameters
    ----------
    loader : iterable
        The training loader. What it does not tell is left out.
    """
    samplers: list[Any] = []
    batch_size = getattr(loader, "batch_size", None)
    sampler = _sampler_of(loader, "batch_sampler", "sampler")
    while sampler is not None and len(samplers) < 8:  # noqa: PLR2004  # in case of a cycle
        samplers.append(sampler)
        batch_size = getattr(sampler, "batch_size", None) or batch_size
        sampler = _sampler_of(sampler, "sampler", "batch_sampler")
    settings: dict[str, Any] = {"rows": _length(getattr(loader, "dataset", None))}
    settings["batch size"] = batch_size if isinstance(batch_size, int) else None
    if samplers:
        settings["sampler"] = type(samplers[-1]).__name__
        seed = getattr(samplers[-1], "seed", None)
        settings["sampler seed"] = seed if isinstance(seed, int) else None
    return {name: value for name, value in settings.items() if value is not None}


def _sampler_of(holder: Any, *names: str) -> Any:
    """Return the first of these attributes that is not None; of a stream it has no length."""
    found = (getattr(holder, name, None) for name in names)
    return next((sampler for sampler in found if sampler is not None), None)


def computation_settings(options: RunOptions) -> dict[str, Any]:
    """Return the run options that decide what a step computes."""
    return {name: options[name] for name in _COMPUTATION}


def optimizer_class(optimizer: torch.optim.Optimizer) -> str:
    """Return the name of an optimizer's class, which says what its state holds."""
    return type(optimizer).__name__


def optimizer_options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return the options of each group as plain values."""
    return [
        {key: _plain(value) for key, value in group.items() if key not in _NOT_OPTIONS}
        for group in optimizer.param_groups
    ]


def use_options(
    optimizer: torch.optim.Optimizer,
    saved: Iterable[Mapping[str, Any]],
    present: Iterable[Mapping[str, Any]],
    schedulers: Iterable[Any],
) -> None:
    """Give an optimizer the options of the script where the script has changed them.

    A learning rate that a scheduler has changed is scaled as the script's was, and its schedulers
    count from the new one.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        With the options of a checkpoint.
    saved, present : iterable of mapping
        What `optimizer_options` returned for the optimizer as the script made it, then and now.
    schedulers : iterable of object
        Those of this optimizer are changed, too.
    """
    for number, (old, new) in enumerate(zip(saved, present, strict=False)):
        group = optimizer.param_groups[number]
        for key in new:
            if key not in old or old[key] == new[key] or key not in group:
                continue
            group[key] = _like(group[key], _moved(key, group[key], old[key], new[key]))
            if key == "lr":
                _rebase(optimizer, number, new["lr"], schedulers)


def _rebase(
    optimizer: torch.optim.Optimizer, number: int, rate: float, schedulers: Iterable[Any]
) -> None:
    group = optimizer.param_groups[number]
    if "initial_lr" in group:
        group["initial_lr"] = _like(group["initial_lr"], rate)
    for scheduler in schedulers:
        if isinstance(scheduler, LRScheduler) and scheduler.optimizer is optimizer:
            if number < len(scheduler.base_lrs):
                scheduler.base_lrs[number] = _like(scheduler.base_lrs[number], rate)
            _rebase(optimizer, number, rate, getattr(scheduler, "_schedulers", ()))


def _moved(key: str, current: Any, old: Any, new: Any) -> Any:
    if key == "lr" and float(current) != old and old:
        return float(current) * new / old
    return tuple(new) if isinstance(new, list) else new


def _like(former: Any, value: Any) -> Any:
    return torch.as_tensor(value).to(former) if isinstance(former, torch.Tensor) else value


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    plain = value is None or isinstance(value, (bool, int, float, str))
    return value if plain else repr(value)


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None
