"""Get and set the states of objects.

The keys of a module's state are those of the bare module, whichever wrapper holds it.  The state of
an optimizer keeps its dtypes, which torch casts to those of the parameters (pytorch#43706).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from brain_ckpt.errors import CheckpointMismatchError

_WRAPPERS = ("module", "_orig_mod")


def get_state(obj: Any) -> Any:
    """Return the state of an object; the keys of a module are those of the bare module."""
    if isinstance(obj, nn.Module):
        state = bare_module(obj).state_dict()
        return _without_wrappers(obj, state)
    if hasattr(obj, "state_dict"):
        return obj.state_dict()
    return {item.name: getattr(obj, item.name) for item in dataclasses.fields(obj)}


def set_state(obj: Any, state: Any, name: str, *, strict: bool = True) -> None:
    """Load a state into an object.

    Raises
    ------
    CheckpointMismatchError
        If it does not fit; the text names the object and the keys or shapes.
    """
    try:
        if isinstance(obj, nn.Module):
            _set_module(obj, state, strict=strict)
        elif isinstance(obj, torch.optim.Optimizer):
            _set_optimizer(obj, state)
        elif hasattr(obj, "load_state_dict"):
            obj.load_state_dict(_without_weak_reference(obj, state))
        else:
            for item in dataclasses.fields(obj):
                setattr(obj, item.name, state[item.name])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointMismatchError(
            f"the state saved as {name!r} must fit the {type(obj).__name__} that it is loaded "
            f"into, got: {error}; build the object as it was when the checkpoint was written"
        ) from error


def check_state(
    obj: Any, state: Any, name: str, groups: Sequence[Sequence[torch.Tensor]] | None = None
) -> None:
    """Check whether a state fits a module or an optimizer, without changing it.

    Parameters
    ----------
    obj, state, name : object, object, str
        As in `set_state`.
    groups : sequence of sequence of Tensor, optional
        The parameters that an optimizer's groups will have; by default those that they have.

    Raises
    ------
    CheckpointMismatchError
        If it does not fit.
    """
    if isinstance(obj, nn.Module) and _loads_as_torch_does(obj) and isinstance(state, Mapping):
        _check_module(obj, state, name)
    elif isinstance(obj, torch.optim.Optimizer):
        _check_optimizer(obj, state, name, groups)


def fit_keys(module: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the keys of a state, saved under any wrapper, to the keys of a module."""
    expected = module.state_dict().keys()
    if all(key in expected for key in state):
        return dict(state)
    by_bare: dict[str, list[str]] = {}
    for key in expected:
        by_bare.setdefault(_bare(key), []).append(key)
    renamed = {}
    for key, value in state.items():
        candidates = by_bare.get(_bare(key), [])
        fits = key not in expected and len(candidates) == 1 and candidates[0] not in state
        renamed[candidates[0] if fits else key] = value
    return renamed


def bare_module(module: nn.Module) -> nn.Module:
    """Return the module inside a wrapper such as DDP or torch.compile."""
    from brain_dist import unwrap_module

    bare = unwrap_module(module)
    assert isinstance(bare, nn.Module)
    return bare


def _without_wrappers(module: nn.Module, state: Mapping[str, Any]) -> Mapping[str, Any]:
    if not any(part in _WRAPPERS for key in state for part in key.split(".")):
        return state
    prefixes: list[str] = []
    for path, inner in bare_module(module).named_modules():
        wrapped = bare_module(inner)
        if wrapped is not inner:
            prefixes.extend(
                f"{path}.{name}" if path else name
                for name, child in inner.named_children()
                if child is wrapped or name in _WRAPPERS
            )
    renamed = type(state)()
    for key, value in state.items():
        bare = key
        for prefix in sorted(prefixes, key=len, reverse=True):
            if bare.startswith(prefix + "."):
                outer = prefix.rpartition(".")[0]
                bare = (outer + "." if outer else "") + bare[len(prefix) + 1 :]
        renamed[bare] = value  # type: ignore[index]  # a state_dict is an OrderedDict
    return renamed


def _bare(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def _set_module(module: nn.Module, state: Any, *, strict: bool) -> None:
    module = bare_module(module)
    if isinstance(state, Mapping):
        state = fit_keys(module, state)
    if strict and _loads_as_torch_does(module):
        module.load_state_dict(state, strict=True)
    else:
        module.load_state_dict(state)


def _loads_as_torch_does(module: nn.Module) -> bool:
    return type(bare_module(module)).load_state_dict is nn.Module.load_state_dict


def _check_module(module: nn.Module, state: Mapping[str, Any], name: str) -> None:
    module = bare_module(module)
    expected = module.state_dict()
    state = fit_keys(module, state)
    problems = [f"lacks {key!r}" for key in expected if key not in state]
    problems += [f"has {key!r}, unknown to the module" for key in state if key not in expected]
    for key, value in expected.items():
        saved = state.get(key)
        if not isinstance(value, torch.Tensor) or not isinstance(saved, torch.Tensor):
            continue
        if not _is_lazy(value) and not _is_lazy(saved) and value.shape != saved.shape:
            problems.append(
                f"has {key!r} of shape {tuple(saved.shape)} where the module has "
                f"{tuple(value.shape)}"
            )
    # Hooks may rename or create keys while loading; only torch's own rules can be predicted.
    predictable = not any(
        inner._load_state_dict_pre_hooks or "_load_from_state_dict" in vars(type(inner))  # noqa: SLF001 - there is no public accessor
        for inner in module.modules()
        if not type(inner).__module__.startswith("torch.nn.") or inner._load_state_dict_pre_hooks  # noqa: SLF001 - there is no public accessor
    )
    if problems and predictable:
        shown = "; ".join(problems[:5]) + (
            f"; and {len(problems) - 5} more" if problems[5:] else ""
        )
        raise CheckpointMismatchError(
            f"the state saved as {name!r} must fit the {type(module).__name__} that it is loaded "
            f"into, got a state that {shown}; build the module as it was, or load the parameters "
            f"that fit with torch_parameter_transfer"
        )


def _is_lazy(value: torch.Tensor) -> bool:
    return isinstance(
        value, (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)
    )


def _check_optimizer(
    optimizer: torch.optim.Optimizer,
    state: Any,
    name: str,
    groups: Sequence[Sequence[torch.Tensor]] | None,
) -> None:
    if not isinstance(state, Mapping) or "param_groups" not in state:
        return
    groups = groups or [group["params"] for group in optimizer.param_groups]
    expected = [len(group) for group in groups]
    saved = [len(group["params"]) for group in state["param_groups"]]
    if expected != saved:
        raise CheckpointMismatchError(
            f"the state saved as {name!r} must fit the {type(optimizer).__name__}, which has "
            f"{expected!r} parameters in its groups, got {saved!r}; build it from the same "
            f"parameters. Groups that training added come back if each of their parameters is in a "
            f"module of the checkpointer: call add_recoverable with it before saving"
        )


def _set_optimizer(optimizer: torch.optim.Optimizer, state: Any) -> None:
    optimizer.load_state_dict(state)
    if not isinstance(state, Mapping) or "state" not in state:
        return
    saved_numbers = [number for group in state["param_groups"] for number in group["params"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, parameter in zip(saved_numbers, parameters, strict=True):
        loaded = optimizer.state.get(parameter, {})
        for key, saved in state["state"].get(number, {}).items():
            cast = loaded.get(key)
            if (
                isinstance(saved, torch.Tensor)
                and isinstance(cast, torch.Tensor)
                and cast.dtype != saved.dtype
            ):
                loaded[key] = saved.to(cast.device, copy=True)


def _without_weak_reference(obj: Any, state: Any) -> Any:
    # SpeechBrain writes the word WEAKREF in place of CyclicLR's reference to its own method.
    if isinstance(state, Mapping) and isinstance(state.get("_scale_fn_ref"), str):
        kept = {key: value for key, value in state.items() if key != "_scale_fn_ref"}
        if hasattr(obj, "_scale_fn_ref"):
            kept["_scale_fn_ref"] = obj._scale_fn_ref  # noqa: SLF001 - a key of torch's state
        return kept
    return state
