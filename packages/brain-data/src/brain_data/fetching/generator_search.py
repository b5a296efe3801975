"""The random number generators and counters that a loader and its samplers hold."""

from __future__ import annotations

import functools
import random
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from brain_data.order.generator_states import (
    capture_generator,
    generator_types,
    restore_generator,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MAX_DEPTH = 8
_MAX_OBJECTS = 2000
_MAX_ITEMS = 100  # longer containers hold data and are not searched
_COUNTER_TYPES = (bool, int, float, str, type(None))
_NOT_SEARCHED = (
    *(str, bytes, bytearray, int, float, complex, type(None), range, slice),
    *(type, types.ModuleType, types.BuiltinFunctionType, types.GeneratorType),
    *(np.ndarray, np.generic, torch.Tensor, torch.nn.Module, torch.device, torch.dtype),
)
_SKIPPED_ATTRIBUTES = frozenset(("_iterator", "multiprocessing_context"))


class GeneratorSearch:
    """The generators and counters that an object holds, at any depth of its attributes.

    Generators are `random.Random`, `numpy.random.Generator`, `numpy.random.RandomState` and
    `torch.Generator` objects. Counters are plain attributes, for example an epoch number, of
    everything but datasets, if their values have changed since this search was constructed.

    Parameters
    ----------
    root
        A loader, or any iterable.
    with_counters
        Whether to capture counters, too.
    without
        Objects that are not searched.
    """

    def __init__(self, root: Any, *, with_counters: bool = True, without: Any = ()) -> None:
        self._root = root
        self._with_counters = with_counters
        self._without = {id(each) for each in without}
        self._initial = self._counters(list(self._walk()))

    def capture(self) -> dict[str, Any]:
        """Return the states of the generators, and the counters that have changed."""
        found = list(self._walk())
        counters = {
            path: value
            for path, value in self._counters(found).items()
            if path not in self._initial or self._initial[path] != value
        }
        generators = {path: capture_generator(each) for path, each in found if _is_held(each)}
        return {"generators": generators, "counters": counters}

    def paths(self) -> list[str]:
        """Return the paths of the generators, as attributes of the object."""
        return [path for path, each in self._walk() if _is_held(each)]

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set generators and counters to what `capture` returned; missing ones are ignored."""
        found = dict(self._walk())
        for path, generator_state in state["generators"].items():
            if isinstance(found.get(path), generator_types()):
                restore_generator(found[path], generator_state)
        for path, value in state["counters"].items():
            owner, _, name = path.rpartition(".")
            if owner in found and name in vars(found[owner]):
                vars(found[owner])[name] = value

    def _counters(self, found: list[tuple[str, Any]]) -> dict[str, Any]:
        if not self._with_counters:
            return {}
        return {
            f"{path}.{name}": value
            for path, owner in found
            if not isinstance(owner, (Dataset, *generator_types(), types.FunctionType))
            for name, value in getattr(owner, "__dict__", {}).items()
            if isinstance(value, _COUNTER_TYPES)
        }

    def _walk(self) -> Iterator[tuple[str, Any]]:
        """Yield the objects that the root refers to with their paths, in a fixed order."""
        seen = {id(self._root), *self._without}
        queue = [("", self._root, 0)]
        for path, value, depth in queue:  # extended while it is iterated
            yield path, value
            if isinstance(value, generator_types()) or depth >= _MAX_DEPTH:
                continue
            for name, child in _children(value):
                if isinstance(child, _NOT_SEARCHED) or id(child) in seen:
                    continue
                if len(seen) > _MAX_OBJECTS:
                    return
                seen.add(id(child))
                queue.append((f"{path}.{name}", child, depth + 1))


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        if len(value) <= _MAX_ITEMS:
            yield from ((str(key), child) for key, child in items)
    elif isinstance(value, types.MethodType):
        yield "__self__", value.__self__
    elif isinstance(value, types.FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=False)
        yield from ((name, cell.cell_contents) for name, cell in cells if not _is_empty(cell))
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    else:
        for name, child in getattr(value, "__dict__", {}).items():
            if name not in _SKIPPED_ATTRIBUTES:
                yield name, child


def _is_empty(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is _is_empty  # never, but it raises for an empty cell
    except ValueError:
        return True


def _is_held(value: Any) -> bool:
    """Return whether a value is a generator, and not one of the global ones."""
    shared = (
        torch.default_generator,
        random._inst,  # noqa: SLF001 - not exported
        np.random.mtrand._rand,  # noqa: SLF001 - not exported
    )
    return isinstance(value, generator_types()) and not any(value is each for each in shared)
