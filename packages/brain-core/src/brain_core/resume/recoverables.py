"""Objects whose state a checkpoint needs, and that a recipe did not add to it."""

from __future__ import annotations

from dataclasses import fields
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Sampler

from brain_core.loggers.base import TrainLogger
from brain_core.options.run_options import RunOptions
from brain_core.stateful import is_stateful
from brain_dist import unwrap_module

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from brain_ckpt import Checkpointer

__all__ = [
    "add_missing_modules",
    "free_name",
    "has_state",
    "missing_modules",
    "missing_states",
    "named_objects",
    "unsaved_states",
]

# Attributes of a Brain that are saved in ways of their own, or hold no state.
_NOT_RECOVERABLE = {f.name for f in fields(RunOptions)} | {
    "checkpointer",
    "hparams",
    "modules",
    "optimizers_dict",
    "train_sampler",  # the loader's position holds it
}
_ADDED = (torch.optim.Optimizer, LRScheduler, torch.amp.GradScaler, TrainLogger)


def named_objects(
    attributes: Mapping[str, Any], optimizers: Mapping[str, Any], hparams: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return what a recipe has given names to, for each place where it did.

    Parameters
    ----------
    attributes : mapping of str to object
        Those of the Brain; private ones, options and what is saved otherwise are left out.
    optimizers, hparams : mapping of str to object
        ``optimizers_dict`` and the hyperparameters.
    """
    public = {
        name: obj
        for name, obj in attributes.items()
        if not name.startswith("_") and name not in _NOT_RECOVERABLE
    }
    return {"self": public, "optimizers": dict(optimizers), "hparams": dict(hparams)}


def add_missing_modules(checkpointer: Checkpointer, modules: Mapping[str, torch.nn.Module]) -> None:
    """Add trained modules that no recoverable holds."""
    for name, module in missing_modules(dict(modules), checkpointer.recoverables).items():
        checkpointer.add_recoverable(name, module, optional_load=True)


def missing_modules(
    modules: Mapping[str, torch.nn.Module], recoverables: Mapping[str, Any]
) -> dict[str, torch.nn.Module]:
    """Return trained modules that no recoverable holds, by a name that is free.

    Parameters
    ----------
    modules : mapping of str to torch.nn.Module
        The modules of a `Brain`, wrapped or not.
    recoverables : mapping of str to object
        What the checkpoints hold already.
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
    """Return optimizers, schedulers, scalers and loggers that no checkpoint holds.

    Parameters
    ----------
    places : mapping of str to mapping
        Where to look: objects by name, for each place by its name.
    recoverables : mapping of str to object
        What the checkpoints hold already.

    Returns
    -------
    dict of str to object
        Keyed by a name that is free.
    """
    found: dict[str, Any] = {}
    seen = {id(obj) for obj in recoverables.values()}
    for place, name, obj in _walk(places):
        disabled = isinstance(obj, torch.amp.GradScaler) and not obj.is_enabled()
        is_added = isinstance(obj, _ADDED) and hasattr(obj, "state_dict") and not disabled
        if is_added and id(obj) not in seen:
            seen.add(id(obj))
            found[free_name(name, place, {**recoverables, **found})] = obj
    return found


def unsaved_states(
    places: Mapping[str, Mapping[str, Any]], recoverables: Mapping[str, Any]
) -> list[str]:
    """Return the names of other objects that have a state and are in no checkpoint.

    Only the recipe knows whether training changes them.

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
    """Return whether an object has a state to save; ``held`` are ids of tensors already saved."""
    if isinstance(obj, torch.nn.Module):
        return _is_trained_beyond(obj, held)
    if isinstance(obj, (DataLoader, Sampler)) or type(obj).__module__ == "builtins":
        return False  # a loader's position is saved by its name, and its sampler's with it
    if isinstance(obj, torch.Generator):
        return True
    return is_stateful(obj)


def free_name(name: str, place: str, taken: Iterable[str]) -> str:
    """Return ``name``, or one with the place before it if the name is taken."""
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
