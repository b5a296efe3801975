"""Parameter groups of optimizers, found again by the names of their parameters.

torch saves the parameters of a group as numbers.  A training that adds groups, as gradual
unfreezing does, then has more of them in its checkpoints than the optimizer that a resumed run
makes.  Names tell which parameters they hold, so that missing groups are added when a state is
loaded.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from brain_ckpt.recoverables.states import bare_module

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

logger = logging.getLogger(__name__)

GroupNames = list[list["str | None"]]


class GroupPlan(NamedTuple):
    """The groups that an optimizer needs for a state.

    Parameters
    ----------
    parameters : list of list of Tensor
        Of each saved group.
    present : list of int or None
        For each saved group the number of the optimizer's, or None if that is to be added.
    names : list of list of str
        The names of the parameters of each saved group.
    """

    parameters: list[list[torch.Tensor]]
    present: list[int | None]
    names: list[list[str]]


def named_parameters(objects: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the parameters of the modules among recoverables; a shared one has several names."""
    from brain_dist import reshard

    modules = {
        name: bare_module(obj) for name, obj in objects.items() if isinstance(obj, nn.Module)
    }
    reshard(modules)  # optimizers hold the sharded parameters
    return {
        f"{name}.{path}": parameter
        for name, module in modules.items()
        for path, parameter in module.named_parameters(remove_duplicate=False)
    }


def group_names(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.Tensor]
) -> GroupNames:
    """Return the names of the parameters of each group; None for one that no module has."""
    name_of = {id(parameter): name for name, parameter in reversed(list(parameters.items()))}
    return [[name_of.get(id(p)) for p in group["params"]] for group in optimizer.param_groups]


def encode_names(names: Mapping[str, GroupNames]) -> bytes:
    """Return the content of the file of names."""
    return json.dumps(names, indent=0).encode()


def decode_names(content: bytes) -> dict[str, GroupNames]:
    """Read the file of names; what is not of its form is left out."""
    try:
        read = json.loads(content)
    except ValueError:
        return {}
    return {key: value for key, value in read.items() if _are_names(value)}


def plan_groups(
    optimizer: torch.optim.Optimizer,
    saved: GroupNames | None,
    parameters: Mapping[str, torch.Tensor],
) -> GroupPlan | None:
    """Return how an optimizer gets the groups of a state; None if it has them, or cannot.

    A group of the optimizer is the saved one that holds all of its parameters.  Saved groups that
    are not among the optimizer's are added, and so are parameters that were added to a group.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        It is not changed.
    saved : list of list of str or None
        The names of the saved groups; None if the checkpoint has none.
    parameters : mapping of str to Tensor
        All parameters of the modules, by name.
    """
    present = group_names(optimizer, parameters)
    if saved is None or saved == present:
        return None
    known = [[name for name in group if name and name in parameters] for group in saved]
    if known != saved or any(None in group for group in present):
        return None
    number_of = {name: number for number, group in enumerate(present) for name in group}
    numbers: list[int | None] = []
    for group in known:
        held = {number_of[name] for name in group if name in number_of}
        if len(held) > 1 or any(not set(present[number]) <= set(group) for number in held):
            return None
        numbers.append(held.pop() if held else None)
    matched = {number for number in numbers if number is not None}
    if any(group and number not in matched for number, group in enumerate(present)):
        return None
    return GroupPlan([[parameters[n] for n in group] for group in known], numbers, known)


def add_missing_groups(
    optimizer: torch.optim.Optimizer, plan: GroupPlan, state: Mapping[str, Any], name: str
) -> None:
    """Give an optimizer the groups of a plan, in the order of the state."""
    former = list(optimizer.param_groups)
    groups = []
    for parameters, number, names, saved in zip(
        plan.parameters, plan.present, plan.names, state["param_groups"], strict=True
    ):
        if number is None:
            options = {key: value for key, value in saved.items() if key != "params"}
            optimizer.add_param_group({**options, "params": parameters})
            groups.append(optimizer.param_groups[-1])
            _log_added(name, names)
            continue
        group = former[number]
        added = [n for n, p in zip(names, parameters, strict=True) if not _holds(group, p)]
        group["params"][:] = parameters
        groups.append(group)
        if added:
            _log_added(name, added)
    optimizer.param_groups[:] = groups


def _holds(group: Mapping[str, Any], parameter: torch.Tensor) -> bool:
    return any(parameter is other for other in group["params"])


def _log_added(name: str, names: Sequence[str]) -> None:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
    logger.info("Added to %r, as training had done before it was saved: %s", name, shown)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(group, list) and all(name is None or isinstance(name, str) for name in group)
        for group in value
    )
