"""The calls of a pipeline that compute its outputs, in order."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

from brain_data.dataset.items import DynamicItem, GeneratorDynamicItem
from brain_data.errors import DataItemError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_PROTOCOL = ("next_takes", "next_provides", "provided_in_order", "reset")

# The kinds of steps. Most steps have one or two arguments and one result. These are separate kinds
# because building an argument list costs as much as the rest of the step.
_ONE, _TWO, _MANY, _START, _NEXT, _CUSTOM = range(6)


class Call(NamedTuple):
    """One call of a pipeline; `stage` counts the calls of an item."""

    item: DynamicItem
    stage: int
    takes: Sequence[str]  # the versioned keys of the arguments
    provides: Sequence[str]  # the versioned keys of the results


class Step(NamedTuple):
    """One call: `keys` is a versioned key if there is one result, else a tuple of them."""

    kind: int
    call: Callable[..., Any]
    takes: Any
    keys: str | tuple[str, ...]
    item: DynamicItem
    generator_key: Any  # The key under which the values hold the item's running generator.


class Steps:
    """The steps that compute some outputs.

    Parameters
    ----------
    calls : sequence of Call
        The calls in order.
    outputs : mapping
        From output name to versioned key.
    """

    def __init__(self, calls: Sequence[Call], outputs: Mapping[Any, str]) -> None:
        generator_keys: dict[int, object] = {}
        self.steps = tuple(
            _make_step(call, generator_keys.setdefault(id(call.item), object())) for call in calls
        )
        # Unpacking a plain tuple takes half as long as unpacking a named one.
        self._plain_steps = tuple(map(tuple, self.steps))
        self._outputs = tuple(outputs.items())
        custom = {id(step.item): step.item for step in self.steps if step.kind == _CUSTOM}
        self._custom = tuple(custom.values())

    def run(self, values: dict[Any, Any], source: object = None) -> dict[Any, Any]:
        """Compute the outputs of one row; `values` is modified."""
        # This runs for every row: everything that does not depend on the row is computed before,
        # and the common kinds come first.
        step = None
        try:
            for step in self._plain_steps:
                kind, call, takes, keys, _, _ = step
                if kind == _ONE:
                    values[keys] = call(values[takes])
                elif kind == _TWO:
                    values[keys] = call(values[takes[0]], values[takes[1]])
                else:
                    _run_uncommon_step(step, values)
            step = None
            outputs = {}
            for name, key in self._outputs:
                outputs[name] = values[key]
        except Exception as error:
            failed = None if step is None else Step(*step)
            raise _explain(error, failed, self._outputs, values, source) from error
        else:
            return outputs
        finally:
            if self._custom:
                for item in self._custom:
                    item.reset()


class _WrongNumberError(Exception):
    """Raised if a function returns another number of values than it has keys."""


def _run_uncommon_step(step: tuple[Any, ...], values: dict[Any, Any]) -> None:
    """Run a step of another kind than _ONE and _TWO."""
    kind, call, takes, keys, item, generator_key = step
    if kind == _MANY:
        result = call(*[values[key] for key in takes])
    elif kind == _START:
        generator = values[generator_key] = call(*[values[key] for key in takes])
        result = next(generator)
    elif kind == _NEXT:
        result = next(values[generator_key])
    else:
        versioned = dict(zip(item.takes, takes, strict=True))
        result = item(*[values[versioned.get(key, key)] for key in item.next_takes()])
    if type(keys) is str:
        values[keys] = result
        return
    try:
        values.update(zip(keys, result, strict=True))
    except (TypeError, ValueError) as error:
        raise _WrongNumberError(str(error)) from error


def versioned_key(key: str, version: int) -> str:
    """Return the key of a value that replaces the value of a key; no item has such a key."""
    return f"{key}\0{version}"


def _key_of(versioned: str) -> str:
    return versioned.partition("\0")[0]


def _make_step(planned: Call, generator_key: object) -> Step:
    item, stage = planned.item, planned.stage
    keys: Any = planned.provides[0] if len(planned.provides) == 1 else tuple(planned.provides)
    takes: Any = tuple(planned.takes)
    base = GeneratorDynamicItem if isinstance(item, GeneratorDynamicItem) else DynamicItem
    if any(getattr(type(item), name) is not getattr(base, name) for name in _PROTOCOL) or (
        base is GeneratorDynamicItem and type(item).__call__ is not base.__call__
    ):
        return Step(_CUSTOM, item, takes, keys, item, generator_key)
    # The function itself, unless a subclass overrides __call__.
    call: Any = item.func if type(item).__call__ is base.__call__ and item.func else item
    if base is GeneratorDynamicItem:
        return Step(_NEXT if stage else _START, call, takes, keys, item, generator_key)
    if len(takes) == 1 and isinstance(keys, str):
        return Step(_ONE, call, takes[0], keys, item, generator_key)
    if len(takes) == 2 and isinstance(keys, str):  # noqa: PLR2004 - a pair
        return Step(_TWO, call, takes, keys, item, generator_key)
    return Step(_MANY, call, takes, keys, item, generator_key)


def _explain(
    error: Exception,
    step: Step | None,
    outputs: Sequence[tuple[Any, str]],
    values: Mapping[Any, Any],
    source: object,
) -> Exception:
    """Return an error that names the item, the row and the function that failed."""
    row = f"row {values['id']!r}" if "id" in values else "a row"
    if source is not None:
        row += f" of {source}"
    present = list(dict.fromkeys(_key_of(key) for key in values if isinstance(key, str)))
    needed = [key for _, key in outputs] if step is None else _argument_keys(step)
    missing = [key for key in needed if key not in values]
    if missing:
        user = "the outputs" if step is None else f"item {_names(step)}"
        return DataItemError(
            f"Every row must have the keys that {user} need; {row} lacks {_key_of(missing[0])!r}"
            f"{nearest(missing[0], present)} and has {present!r}: add it, or leave the row out."
        )
    if step is None:
        return error
    where = f"Item {_names(step)} of {row}: {describe(step.item.func)}"
    if isinstance(error, StopIteration):
        return DataItemError(
            f"{where} must yield {len(step.item.provides)} times, for "
            f"{list(step.item.provides)!r}; it ended before: add the missing "
            "yield, or take the key out of @provides."
        )
    if isinstance(error, _WrongNumberError):
        return DataItemError(
            f"{where} must return {len(step.keys)} values, for {_names(step)}; it did not "
            f"({error}): return that many, or change @provides."
        )
    return DataItemError(
        f"{where} failed on {_shown(step, values)}: {type(error).__name__}: {error}. "
        "Correct the row, what it refers to, or the function."
    )


def describe(func: Any) -> str:
    """Return the qualified name, file and line of a function."""
    while isinstance(func, functools.partial):
        func = func.func
    name = getattr(func, "__qualname__", None) or type(func).__qualname__
    code = getattr(func, "__code__", None) or getattr(type(func).__call__, "__code__", None)
    return f"{name}()" + (f" ({code.co_filename}:{code.co_firstlineno})" if code else "")


def _argument_keys(step: Step) -> list[str]:
    if step.kind == _NEXT:
        return []
    return [step.takes] if isinstance(step.takes, str) else list(step.takes)


def _names(step: Step) -> str:
    if isinstance(step.keys, str):
        return repr(_key_of(step.keys))
    return repr([_key_of(versioned) for versioned in step.keys])


def _shown(step: Step, values: Mapping[Any, Any]) -> str:
    parts = []
    for versioned in [step.takes] if isinstance(step.takes, str) else step.takes:
        key, value = _key_of(versioned), values.get(versioned)
        text = repr(value) if isinstance(value, (str, int, float)) else ""
        kind = type(value).__name__
        parts.append(f"{key}={text}" if text and len(text) <= 200 else f"{key}: {kind}")  # noqa: PLR2004
    return f"({', '.join(parts)})"
