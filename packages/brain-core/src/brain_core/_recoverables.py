"""What a recipe has that a checkpoint needs, and did not put into it."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Sampler

from brain_dist import unwrap_module

from ._train_logger import TrainLogger

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

__all__ = ["free_name", "has_state", "missing_modules", "missing_states", "unsaved_states"]

_ADDED = (torch.optim.Optimizer, LRScheduler, torch.amp.GradScaler, TrainLogger)


def missing_modules(
    modules: Mapping[str, torch.nn.Module], recoverables: Mapping[str, Any]
) -> dict[str, torch.nn.Module]:
    """Find modules that are trained and that no recoverable holds, under names that are free.

    Parameters
    ----------
    modules : mapping of str to torch.nn.Module
        All that a `Brain` has, wrapped or not.
    recoverables : mapping of str to object
        What a checkpoint holds already.
    """
    held = _tensors_of(recoverables.values())
    missing = {
        name: unwrap_module(module)
        for name, module in modules.items()
        if _is_trained_beyond(module, held)
    }
    return {free_name(name, "modules", recoverables): obj for name, obj in missing.items()}


def missing_states(
    places: Mapping[str, Mapping[str, Any]], recoverables: Mapping[str, Any]
) -> dict[str, Any]:
    """Find optimizers, schedulers, scalers and loggers that no checkpoint holds.

    Parameters
    ----------
    places : mapping of str to mapping
        Where to look: objects by name, by the name of the place.
    recoverables : mapping of str to object
        What a checkpoint holds already.

    Returns
    -------
    dict of str to object
        By a name that is free.
    """
    found: dict[str, Any] = {}
    seen = {id(obj) for obj in recoverables.values()}
    for place, name, obj in _walk(places):
        disabled = isinstance(obj, torch.amp.GradScaler) and not obj.is_enabled()
        wanted = isinstance(obj, _ADDED) and hasattr(obj, "state_dict") and not disabled
        if wanted and id(obj) not in seen:
            seen.add(id(obj))
            found[free_name(name, place, {**recoverables, **found})] = obj
    return found


def unsaved_states(
    places: Mapping[str, Mapping[str, Any]], recoverables: Mapping[str, Any]
) -> list[str]:
    """Name what has a state and is in no checkpoint, for `missing_states` does not know it.

    Whether its state changes in training, only the recipe knows.

    Examples
    --------
    >>> unsaved_states({"hparams": {"noise": torch.Generator(), "size": 3}}, {})
    ['hparams.noise (Generator)']
    """
    known = {id(obj) for obj in recoverables.values()}
    held = _tensors_of(recoverables.values())
    return [
        f"{place}.{name} ({type(obj).__name__})"
        for place, name, obj in _walk(places)
        if id(obj) not in known and not isinstance(obj, _ADDED) and has_state(obj, held)
    ]


def has_state(obj: Any, held: Collection[int] = ()) -> bool:
    """Whether a checkpointer could save it and ``held``, the ids of tensors, does not cover it."""
    if isinstance(obj, torch.nn.Module):
        return _is_trained_beyond(obj, held)
    if isinstance(obj, (DataLoader, Sampler)) or type(obj).__module__ == "builtins":
        return False  # a loader's position is saved by its name, and its sampler's with it
    if isinstance(obj, torch.Generator):
        return True
    if hasattr(obj, "state_dict") and hasattr(obj, "load_state_dict"):
        return True
    methods = (getattr(type(obj), name, None) for name in dir(type(obj)))
    return any(getattr(method, "_speechbrain_saver", False) for method in methods)


def free_name(name: str, place: str, taken: Iterable[str]) -> str:
    """Return ``name``, or one that tells the place where that is another object's."""
    folded = {other.casefold() for other in taken}
    candidates = chain((name, f"{place}.{name}"), (f"{place}.{name}.{n}" for n in range(2, 99)))
    return next(free for free in candidates if free.casefold() not in folded)


def _walk(places: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, Any]]:
    for place, objects in places.items():
        for name, obj in objects.items():
            if not isinstance(obj, type):
                yield place, str(name), obj


def _tensors_of(objects: Iterable[Any]) -> set[int]:
    modules = (obj for obj in objects if isinstance(obj, torch.nn.Module))
    return {id(p) for module in modules for p in module.parameters()}


def _is_trained_beyond(module: torch.nn.Module, held: Collection[int]) -> bool:
    return any(p.requires_grad and id(p) not in held for p in module.parameters())
