"""The data pipeline: which functions run, and in which order, to compute the outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from brain_data.dataset.items import DynamicItem, StaticItem
from brain_data.dataset.items import provides as provides_keys
from brain_data.dataset.pipeline_steps import Call, Steps, describe, versioned_key
from brain_data.errors import CircularDependencyError, UnknownKeyError, nearest


@dataclass
class _Node:
    """One call of an item, or a key of the row."""

    item: StaticItem | DynamicItem
    keys: Sequence[str]
    stage: int = 0
    depends: list[int] = field(default_factory=list)
    takes: Sequence[str] = ()  # the versioned keys of the arguments, as of when it was added
    provides: Sequence[str] = ()  # the versioned keys of `keys`


class DataPipeline:
    """Functions that compute items of a row; only those that the outputs need run.

    The order of the calls is computed for the first row, and again only after the outputs or the
    items have changed. An item may replace a key that it takes itself: items added after it, and
    the outputs, get the new value; items added before it get the old one.

    Parameters
    ----------
    static_data_keys : iterable of str
        Keys that each row has.
    dynamic_items : iterable, optional
        :class:`DynamicItem` objects, or mappings with ``func``, ``takes`` and ``provides``.
    output_keys : iterable or mapping, optional
        Keys of the output; a mapping is from output name to key.

    Attributes
    ----------
    source : object
        The origin of the rows, usually a file; errors name it.

    Examples
    --------
    >>> pipeline = DataPipeline(
    ...     ["text"],
    ...     [
    ...         {"func": str.lower, "takes": "text", "provides": "lower"},
    ...         {"func": lambda x: x[::-1], "takes": "lower", "provides": "reversed"},
    ...     ],
    ...     ["reversed"],
    ... )
    >>> pipeline({"text": "Test"})
    {'reversed': 'tset'}
    """

    def __init__(
        self,
        static_data_keys: Iterable[str],
        dynamic_items: Iterable[Any] | None = None,
        output_keys: Iterable[Any] | Mapping[Any, str] | None = None,
    ) -> None:
        self.source: object = None
        self.dynamic_items: list[DynamicItem] = []
        self.output_mapping: Mapping[Any, str] = {}
        self.key_to_node: dict[str, int] = {}
        self.unaccounted_keys: dict[str, list[int]] = {}
        self._nodes: list[_Node] = []
        self._versions: dict[str, str] = {}  # versioned keys of the keys that were replaced
        self._plans: dict[Any, Steps] = {}
        self.add_static_keys(static_data_keys)
        self.add_dynamic_items(dynamic_items or [])
        self.set_output_keys(output_keys)

    def __call__(self, data: Mapping[str, Any]) -> dict[Any, Any]:
        """Compute the outputs of the row `data`."""
        return self.compute_outputs(data)

    def add_static_keys(self, static_keys: Iterable[str]) -> None:
        """Add keys that each row has."""
        for key in static_keys:
            if key in self.key_to_node:
                self._raise_duplicate(key, f"the row's own key {key!r}")
            self._add_node(_Node(StaticItem(key), (key,)))

    def add_dynamic_items(self, dynamic_items: Iterable[Any]) -> None:
        """Add items or mappings with ``func``, ``takes`` and ``provides``."""
        for item in dynamic_items:
            if isinstance(item, Mapping):
                self.add_dynamic_item(**item)
            else:
                self.add_dynamic_item(item)

    def add_dynamic_item(
        self,
        func: DynamicItem | Callable[..., Any],
        takes: str | Iterable[str] | None = None,
        provides: str | Iterable[Any] | None = None,
    ) -> None:
        """Add an item: a :class:`DynamicItem`, or a function with its keys.

        Parameters
        ----------
        func : DynamicItem or callable
            A generator function becomes a :class:`GeneratorDynamicItem`.
        takes, provides : str or iterable of str
            As for the decorators; not with a :class:`DynamicItem`, which has its own keys.

        Raises
        ------
        ValueError
            If nothing is provided, or a key is already provided and not taken by this item.
        """
        if isinstance(func, DynamicItem):
            if takes is not None or provides is not None:
                raise ValueError(
                    f"An item has its own keys; got one that provides {list(func.provides)!r} "
                    f"and takes={takes!r}, provides={provides!r}: leave these out."
                )
            self._add_item(func)
            return
        if not callable(func):
            raise TypeError(
                f"An item needs a function to compute it; got {func!r} for {provides!r}: pass a "
                "callable or a DynamicItem."
            )
        item = provides_keys(*_as_keys(provides))(func)
        item.takes = tuple(_as_keys(takes)) if not item.takes else item.takes
        self._add_item(item)

    def set_output_keys(self, keys: Iterable[Any] | Mapping[Any, str] | None) -> None:
        """Set the outputs: keys, or a mapping from output name to key."""
        self.output_mapping = _as_mapping(keys)
        self._plans.pop(None, None)

    def compute_outputs(self, data: Mapping[str, Any]) -> dict[Any, Any]:
        """Compute the outputs of the row `data`, which is not modified.

        Raises
        ------
        DataItemError
            If an item cannot be computed; the message names it, its function and the row.
        """
        plan = self._plans.get(None) or self._plan_of_outputs()
        return plan.run(dict(data), self.source)

    def compute_specific(
        self, keys: Iterable[Any] | Mapping[Any, str], data: Mapping[str, Any]
    ) -> dict[Any, Any]:
        """Compute other keys of the row `data`; the output keys do not change."""
        return self.plan(keys).run(dict(data), self.source)

    def compute_row(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """Compute the outputs from a dict that the pipeline may modify."""
        plan = self._plans.get(None) or self._plan_of_outputs()
        return plan.run(values, self.source)

    def plan(self, keys: Iterable[Any] | Mapping[Any, str]) -> Steps:
        """Return the steps that compute `keys`, cached by the keys."""
        mapping = _as_mapping(keys)
        name = tuple(mapping.items())
        if name not in self._plans:
            self._plans[name] = self._plan_for(mapping)
        return self._plans[name]

    def copy(self) -> DataPipeline:
        """Return a copy that can be extended; the functions are shared."""
        new = copy.copy(self)
        copies = {id(item): copy.copy(item) for item in self.dynamic_items}
        new.dynamic_items = list(copies.values())
        new.key_to_node = dict(self.key_to_node)
        new.unaccounted_keys = {key: list(nodes) for key, nodes in self.unaccounted_keys.items()}
        new._nodes = [  # noqa: SLF001 - of the same class
            replace(node, item=copies.get(id(node.item), node.item), depends=list(node.depends))
            for node in self._nodes
        ]
        new._versions = dict(self._versions)  # noqa: SLF001
        new._plans = {}  # noqa: SLF001
        return new

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without plans: a spawned worker computes its own."""
        return {**self.__dict__, "_plans": {}}

    def _add_item(self, item: DynamicItem) -> None:
        stages = item.provided_in_order()
        provided = [key for keys in stages for key in keys]
        if not provided:
            raise ValueError(
                f"An item must provide at least one key; {describe(item.func)} provides none: "
                "decorate it with @provides(...), or pass provides=."
            )
        if isinstance(item.takes, str):
            item.takes = (item.takes,)
        name = describe(item.func)
        for position, key in enumerate(provided):
            is_duplicate = key in self.key_to_node and key not in item.takes
            if is_duplicate or key in provided[:position]:
                self._raise_duplicate(key, name)
        needed = [self.key_to_node.get(key) for key in item.takes]
        takes = [self._versions.get(key, key) for key in item.takes]
        for stage, keys in enumerate(stages):
            index = self._add_node(_Node(item, keys, stage, takes=takes))
            if stage:
                self._depend(index, index - 1)
                continue
            for key, node in zip(item.takes, needed, strict=True):
                if node is not None:
                    self._depend(index, node)
                elif key in self.key_to_node:  # provided by this item itself: a cycle, found later
                    self._depend(index, index)
                else:
                    self.unaccounted_keys.setdefault(key, []).append(index)
        self.dynamic_items.append(item)

    def _add_node(self, node: _Node) -> int:
        index = len(self._nodes)
        self._nodes.append(node)
        self._plans.clear()
        for key in node.keys:
            if key in self.key_to_node:
                self._versions[key] = versioned_key(key, index)
            self.key_to_node[key] = index
            for dependent in self.unaccounted_keys.pop(key, []):
                self._depend(dependent, index)
        node.provides = [self._versions.get(key, key) for key in node.keys]
        return index

    def _depend(self, node: int, needed: int) -> None:
        if needed not in self._nodes[node].depends:
            self._nodes[node].depends.append(needed)

    def _raise_duplicate(self, key: str, name: str) -> None:
        node = self.key_to_node.get(key)
        other = None if node is None else self._nodes[node].item
        if isinstance(other, DynamicItem):
            origin = f"{describe(other.func)} provides it already"
        else:
            origin = "each row has it already" if other is not None else "it is named twice"
        raise ValueError(
            f"A key must be provided once; got {key!r} from {name}, and {origin}: provide it under "
            "another name, and rename it with set_output_keys({'output name': 'key'})."
        )

    def _plan_of_outputs(self) -> Steps:
        plan = self._plans[None] = self._plan_for(self.output_mapping)
        return plan

    def _plan_for(self, mapping: Mapping[Any, str]) -> Steps:
        order: list[Call] = []
        done: set[int] = set()
        for key in mapping.values():
            if key not in self.key_to_node:
                raise UnknownKeyError(
                    f"An output key must be in the rows or provided by an item; got {key!r}"
                    f"{nearest(key, self.key_to_node)}, the keys are {list(self.key_to_node)!r}: "
                    "correct set_output_keys, or add the item."
                )
            self._visit(self.key_to_node[key], [], done, order)
        outputs = {name: self._versions.get(key, key) for name, key in mapping.items()}
        return Steps(order, outputs)

    def _visit(self, index: int, path: list[int], done: set[int], order: list[Call]) -> None:
        if index in path:
            cycle = [*path[path.index(index) :], index]
            shown = " -> ".join(str(self._nodes[node].keys[0]) for node in cycle)
            raise CircularDependencyError(
                f"Items must not depend on each other in a cycle; got {shown}: change the keys "
                "that one of them takes."
            )
        if index in done:
            return
        node = self._nodes[index]
        for needed in node.depends:
            self._visit(needed, [*path, index], done, order)
        done.add(index)
        if not isinstance(node.item, DynamicItem):
            return
        missing = [key for key in node.item.takes if key not in self.key_to_node]
        if missing:
            raise RuntimeError(
                f"Each key that an item takes must be in the rows or provided by another; "
                f"{describe(node.item.func)} takes {missing[0]!r}"
                f"{nearest(missing[0], self.key_to_node)}, there are {list(self.key_to_node)!r}: "
                "correct @takes, or add the item that provides it."
            )
        order.append(Call(node.item, node.stage, node.takes, node.provides))


def _as_keys(keys: str | Iterable[Any] | None) -> list[Any]:
    if keys is None:
        return []
    return [keys] if isinstance(keys, str) else list(keys)


def _as_mapping(keys: Iterable[Any] | Mapping[Any, str] | None) -> Mapping[Any, str]:
    if keys is None:
        return {}
    if isinstance(keys, Mapping):
        return dict(keys)
    return {key: key for key in _as_keys(keys)}
