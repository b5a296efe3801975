"""What a further call of fit in the same process takes over from the one before."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LRScheduler

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["TensorCopies", "carry_over"]

logger = logging.getLogger(__name__)


class TensorCopies:
    """Copies of modules' parameters and buffers, in the memory of the host.

    Parameters
    ----------
    modules : torch.nn.Module
        What is copied.
    others : iterable of object
        What else belongs to the model, with ``state_dict`` and ``load_state_dict``.
    """

    def __init__(self, modules: torch.nn.Module, others: Iterable[Any] = ()) -> None:
        tensors = [*modules.parameters(), *modules.buffers()]
        self._copies = [(t.detach(), t.detach().to("cpu", copy=True)) for t in tensors]
        self._states = [(obj, copy.deepcopy(obj.state_dict())) for obj in others]

    def restore(self) -> None:
        """Copy the values back."""
        for tensor, values in self._copies:
            tensor.copy_(values)
        for obj, state in self._states:
            obj.load_state_dict(state)


def carry_over(former: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Give optimizers, schedulers and scalers the states of those that they replace.

    A call of fit makes its optimizers anew. With a checkpointer they continue with the former
    state, as SpeechBrain's do by way of the checkpoint.

    Parameters
    ----------
    former, present : mapping of str to object
        The recoverables of the call before, and of this one.
    """
    for name, obj in present.items():
        old = former.get(name)
        if old is None or old is obj or type(old) is not type(obj):
            continue
        if isinstance(obj, torch.optim.Optimizer):
            _carry_optimizer(name, old, obj)
        elif isinstance(obj, (LRScheduler, torch.amp.GradScaler)):
            obj.load_state_dict(old.state_dict())


def _carry_optimizer(name: str, old: Any, new: torch.optim.Optimizer) -> None:
    if list(map(_identities, old.param_groups)) != list(map(_identities, new.param_groups)):
        logger.info(
            "The optimizer %r has other parameters than in the fit before: its state begins anew.",
            name,
        )
        return
    new.state.update(old.state)
    for old_group, new_group in zip(old.param_groups, new.param_groups, strict=True):
        new_group.update({key: value for key, value in old_group.items() if key != "params"})


def _identities(group: Mapping[str, Any]) -> list[int]:
    return [id(parameter) for parameter in group["params"]]
