"""Attributes that a recipe changes in training: on its Brain, its hyperparameters, its modules."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from brain_core.resume.plain_values import from_saved, mark_of, size_of, to_saved
from brain_dist import unwrap_module

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

__all__ = ["AttributeState", "Owners", "attribute_owners"]

logger = logging.getLogger(__name__)

Owners = dict[str, tuple[Any, frozenset[str]]]

_LARGEST_BYTES = 2**20
_LARGEST_OF_A_MODULE_BYTES = 2**26
_MODULE_INTERNALS = frozenset(vars(torch.nn.Module())) | {"_is_full_backward_hook"}
_MISSING = object()


class AttributeState:
    """The attributes that training changes, as a state that a checkpoint holds.

    Plain values (see `size_of`) are saved if they differ from what they were when `begin` was
    called. They are compared when a state is saved, never at a step. Other attributes that change
    are named in a warning, once.

    Parameters
    ----------
    selection : bool or list of str
        Whether to save and restore attributes, or the names of those to save and restore.

    Attributes
    ----------
    left_out : list of str
        What had changed when the loaded state was saved, and is not in it.
    """

    def __init__(self, selection: bool | list[str] = True) -> None:
        self._selection = selection
        self._owners: Owners = {}
        self._ignored: frozenset[int] = frozenset()
        self._marks: dict[tuple[str, str], Any] = {}
        self._loaded: dict[str, dict[str, Any]] = {}
        self._has_warned = False
        self.left_out: list[str] = []

    def begin(self, owners: Owners, saved_otherwise: Collection[Any] = ()) -> None:
        """Remember all attributes as they are.

        Parameters
        ----------
        owners : dict
            What `attribute_owners` returns.
        saved_otherwise : collection of object
            What a checkpoint holds already.
        """
        self._owners = owners
        self._ignored = frozenset(map(id, saved_otherwise))
        self._marks = {(place, name): mark_of(value) for place, name, value in self._walk()}

    def state_dict(self) -> dict[str, Any]:
        """Return the attributes that have changed, and the names of those that cannot be saved."""
        values: dict[str, dict[str, Any]] = {}
        left_out = []
        for place, name, value in self._walk():
            mark = mark_of(value)
            was_loaded = name in self._loaded.get(place, {})
            is_changed = mark is not None and mark != self._marks.get((place, name), _MISSING)
            if not (is_changed or was_loaded):
                continue
            if _fits(value, place):
                values.setdefault(place, {})[name] = to_saved(value)
            else:
                left_out.append(f"{place}.{name} ({type(value).__name__})")
        self._warn(left_out)
        return {"values": values, "left_out": left_out}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep a state for `restore`."""
        self._loaded = {} if self._selection is False else dict(state["values"])
        self.left_out = list(state["left_out"])

    def selected(self) -> list[str]:
        """Return the names of the attributes that were loaded and will be restored."""
        return [
            f"{place}.{name}"
            for place, values in self._loaded.items()
            for name in values
            if self._is_selected(name)
        ]

    def restore(self, owners: Owners) -> None:
        """Assign the attributes that were loaded last to what `attribute_owners` returned."""
        for place, values in self._loaded.items():
            owner, _ = owners.get(place, (None, None))
            for name, saved in values.items():
                if owner is not None and self._is_selected(name):
                    _assign(owner, name, saved)

    def _walk(self) -> Iterator[tuple[str, str, Any]]:
        for place, (owner, private) in self._owners.items():
            for name, value in _values_of(owner).items():
                if name in private or id(value) in self._ignored or not self._is_selected(name):
                    continue
                yield place, name, value

    def _is_selected(self, name: str) -> bool:
        return name in self._selection if isinstance(self._selection, list) else self._selection

    def _warn(self, left_out: list[str]) -> None:
        if left_out and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "No checkpoint holds %s, which training changes. A run that resumes inside an "
                "epoch lacks it: call checkpointer.add_recoverable(name, object) for an object "
                "with state_dict and load_state_dict.",
                ", ".join(left_out),
            )


def attribute_owners(brain: Any, private: frozenset[str]) -> Owners:
    """Return the objects whose attributes a recipe changes, each by the name of its place.

    Parameters
    ----------
    brain : Brain
        Itself, its ``hparams`` and its modules.
    private : frozenset of str
        Attributes of the Brain that are the loop's own.

    Returns
    -------
    dict of str to tuple
        The object, and the names of attributes to ignore.
    """
    owners: Owners = {"self": (brain, private), "hparams": (brain.hparams, frozenset())}
    for name, module in brain.modules.items():
        for path, part in unwrap_module(module).named_modules():
            if not type(part).__module__.startswith("torch."):  # those keep their state in buffers
                owners[f"modules.{name}.{path}".rstrip(".")] = (part, _MODULE_INTERNALS)
    return owners


def _values_of(owner: Any) -> dict[str, Any]:
    values = dict(vars(owner))
    if isinstance(owner, torch.nn.Module):
        for name in owner._non_persistent_buffers_set:  # noqa: SLF001  # torch has no public name
            values[name] = getattr(owner, name)
    return values


def _fits(value: Any, place: str) -> bool:
    """Return whether a value is plain and small enough to be in each checkpoint."""
    size = size_of(value)
    of_a_module = place.startswith("modules.")
    limit = _LARGEST_OF_A_MODULE_BYTES if of_a_module else _LARGEST_BYTES
    return size is not None and size <= limit


def _assign(owner: Any, name: str, saved: Any) -> None:
    present = getattr(owner, name, None)
    value = from_saved(saved, present)
    if isinstance(owner, torch.nn.Module) and isinstance(value, torch.Tensor):
        value = value.to(present.device) if isinstance(present, torch.Tensor) else value
    setattr(owner, name, value)
