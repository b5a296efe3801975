"""Undo what hooks do a second time when an epoch that they had begun is resumed."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from brain_dist import gather_objects

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

__all__ = ["RestoredGroups", "undoing_changes"]

logger = logging.getLogger(__name__)


class RestoredGroups:
    """Lets hooks add the parameter groups once more that a checkpoint has brought back.

    A recipe that unfreezes a module calls ``add_param_group`` at the beginning of some epoch. When
    that epoch is resumed it does so again, with parameters that the optimizer has already. Until
    `end`, this has no effect.

    Parameters
    ----------
    recoverables : mapping of str to object
        What is loaded, before it is.
    """

    def __init__(self, recoverables: Mapping[str, Any]) -> None:
        self._before = [(obj, _parameters_of(obj)) for obj in _optimizers_in(recoverables)]
        self._restored: list[torch.optim.Optimizer] = []

    def loaded(self) -> None:
        """Begin with those optimizers that got parameters from the checkpoint."""
        for optimizer, before in self._before:
            if _parameters_of(optimizer) != before:
                self._restored.append(optimizer)
                vars(optimizer)["add_param_group"] = _only_new(optimizer)

    def end(self) -> None:
        """Let every call of ``add_param_group`` count again."""
        for optimizer in self._restored:
            vars(optimizer).pop("add_param_group", None)
            for group in optimizer.param_groups:  # a hook may have extended a list
                group["params"][:] = {id(p): p for p in group["params"]}.values()
        self._restored.clear()


@contextmanager
def undoing_changes(
    recoverables: Mapping[str, Any], load: Callable[[Collection[str]], object]
) -> Iterator[None]:
    """Restore modules, optimizers, schedulers and scalers that the body changes; all ranks do.

    Parameters
    ----------
    recoverables : mapping of str to object
        What was loaded.
    load : callable
        Loads those with these names again.
    """
    before = {name: _mark_of(obj) for name, obj in recoverables.items()}
    yield
    changed = {name for name, obj in recoverables.items() if before.get(name) != _mark_of(obj)}
    names = set().union(*gather_objects(changed))
    if names:
        logger.info(
            "Loading %s again: on_stage_start had run in the epoch that is resumed, and has "
            "changed them once more.",
            ", ".join(sorted(names)),
        )
        load(names)


def _optimizers_in(recoverables: Mapping[str, Any]) -> list[torch.optim.Optimizer]:
    return [obj for obj in recoverables.values() if isinstance(obj, torch.optim.Optimizer)]


def _parameters_of(optimizer: torch.optim.Optimizer) -> list[list[int]]:
    return [[id(p) for p in group["params"]] for group in optimizer.param_groups]


def _only_new(optimizer: torch.optim.Optimizer) -> Callable[[dict[str, Any]], None]:
    def add_param_group(param_group: dict[str, Any]) -> None:
        given = param_group["params"]
        parameters = [given] if isinstance(given, torch.Tensor) else list(given)
        held = {number for group in _parameters_of(optimizer) for number in group}
        tensors = [p[1] if isinstance(p, tuple) else p for p in parameters]
        if not all(id(tensor) in held for tensor in tensors):
            type(optimizer).add_param_group(optimizer, {**param_group, "params": parameters})

    return add_param_group


def _mark_of(obj: Any) -> Any:
    """Return a value that differs once a module, optimizer, scheduler or scaler has changed."""
    if isinstance(obj, torch.nn.Module):
        return id(obj), [_version(t) for t in (*obj.parameters(), *obj.buffers())]
    if isinstance(obj, torch.optim.Optimizer):
        groups = [
            {key: value for key, value in group.items() if key != "params"}
            for group in obj.param_groups
        ]
        return id(obj), _parameters_of(obj), _plain(groups), _plain(list(obj.state.values()))
    if isinstance(obj, (LRScheduler, torch.amp.GradScaler)):
        return id(obj), _plain(obj.state_dict())
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _version(value)
    if isinstance(value, dict):
        return [(repr(key), _plain(part)) for key, part in value.items()]
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return repr(value)


def _version(tensor: torch.Tensor) -> tuple[int, int]:
    """Return what an in-place operation on a tensor changes."""
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return id(tensor), 0 if local.is_inference() else local._version  # noqa: SLF001  # torch's
