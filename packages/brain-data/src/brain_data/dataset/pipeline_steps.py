"""A pipeline worked out once: the calls that give the outputs, in order."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

from brain_data.dataset.items import DynamicItem, GeneratorDynamicItem
from brain_data.errors import DataItemError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_PROTOCOL = ("next_takes", "next_provides", "provided_in_order", "reset")

# What a step does. One and two arguments with one result are most steps, and have a way of their
# own because building an argument list costs as much as the rest of the step.
_ONE, _TWO, _MANY, _START, _NEXT, _CUSTOM = range(6)


class Call(NamedTuple):
    """One call that a pipeline makes; `stage` counts the calls of an item."""

    item: DynamicItem
    stage: int
    takes: Sequence[str]  # where the arguments are
    places: Sequence[str]  # where the results go


class Step(NamedTuple):
    """One call: `keys` is a place when there is one value to keep, else a tuple of them."""

    kind: int
    call: Callable[..., Any]
    takes: Any
    keys: str | tuple[str, ...]
    item: DynamicItem
    slot: Any  # Where the values hold the running generator of this item.


class Steps:
    """The steps that compute some outputs, and the outputs themselves.

    Parameters
    ----------
    calls : sequence of Call
        The calls in order.
    outputs : mapping
        Name outside to place inside.
    """

    def __init__(self, calls: Sequence[Call], outputs: Mapping[Any, str]) -> None:
        slots: dict[int, object] = {}
        self.steps = tuple(
            _make_step(call, slots.setdefault(id(call.item), object())) for call in calls
        )
        # Unpacking a plain tuple takes half as long as a named one.
        self._calls = tuple(map(tuple, self.steps))
        self._outputs = tuple(outputs.items())
        custom = {id(step.item): step.item for step in self.steps if step.kind == _CUSTOM}
        self._custom = tuple(custom.values())

    def run(self, values: dict[Any, Any], source: object = None) -> dict[Any, Any]:
        """Compute the outputs of one row. `values` is filled in: hand over a dict of your own."""
        # This runs for every row: what can be known before is known before, and the common steps
        # come first.
        now = None
        try:
            for now in self._calls:
                kind, call, takes, keys, _, _ = now
                if kind == _ONE:
                    values[keys] = call(values[takes])
                elif kind == _TWO:
                    values[keys] = call(values[takes[0]], values[takes[1]])
                else:
                    _take(now, values)
            now = None
            outputs = {}
            for outside, inside in self._outputs:
                outputs[outside] = values[inside]
        except Exception as error:
            step = None if now is None else Step(*now)
            raise _explained(error, step, self._outputs, values, source) from error
        else:
            return outputs
        finally:
            if self._custom:
                for item in self._custom:
                    item.reset()


class _WrongNumberError(Exception):
    """A function that gave another number of values than there are keys."""


def _take(step: tuple[Any, ...], values: dict[Any, Any]) -> None:
    """Take a step that is not one of the two common ones."""
    kind, call, takes, keys, item, slot = step
    if kind == _MANY:
        result = call(*[values[key] for key in takes])
    elif kind == _START:
        generator = values[slot] = call(*[values[key] for key in takes])
        result = next(generator)
    elif kind == _NEXT:
        result = next(values[slot])
    else:
        places = dict(zip(item.takes, takes, strict=True))
        result = item(*[values[places.get(key, key)] for key in item.next_takes()])
    if type(keys) is str:
        values[keys] = result
        return
    try:
        values.update(zip(keys, result, strict=True))
    except (TypeError, ValueError) as error:
        raise _WrongNumberError(str(error)) from error


def another_place(key: str, number: int) -> str:
    """Name the place of a value whose key is provided anew: one that no key has."""
    return f"{key}\0{number}"


def _key_of(place: str) -> str:
    return place.partition("\0")[0]


def _make_step(made: Call, slot: object) -> Step:
    item, stage = made.item, made.stage
    keys: Any = made.places[0] if len(made.places) == 1 else tuple(made.places)
    takes: Any = tuple(made.takes)
    base = GeneratorDynamicItem if isinstance(item, GeneratorDynamicItem) else DynamicItem
    if any(getattr(type(item), name) is not getattr(base, name) for name in _PROTOCOL) or (
        base is GeneratorDynamicItem and type(item).__call__ is not base.__call__
    ):
        return Step(_CUSTOM, item, takes, keys, item, slot)
    # The function itself, unless a subclass has its own way of calling it.
    call: Any = item.func if type(item).__call__ is base.__call__ and item.func else item
    if base is GeneratorDynamicItem:
        return Step(_NEXT if stage else _START, call, takes, keys, item, slot)
    if len(takes) == 1 and isinstance(keys, str):
        return Step(_ONE, call, takes[0], keys, item, slot)
    if len(takes) == 2 and isinstance(keys, str):  # noqa: PLR2004 - a pair
        return Step(_TWO, call, takes, keys, item, slot)
    return Step(_MANY, call, takes, keys, item, slot)


def _explained(
    error: Exception,
    step: Step | None,
    outputs: Sequence[tuple[Any, str]],
    values: Mapping[Any, Any],
    source: object,
) -> Exception:
    """Say which item of which row failed in which function, and what it was."""
    row = f"row {values['id']!r}" if "id" in values else "a row"
    if source is not None:
        row += f" of {source}"
    have = list(dict.fromkeys(_key_of(key) for key in values if isinstance(key, str)))
    needed = [inside for _, inside in outputs] if step is None else _argument_keys(step)
    missing = [key for key in needed if key not in values]
    if missing:
        what = "the outputs" if step is None else f"item {_names(step)}"
        return DataItemError(
            f"Every row must have the keys that {what} need; {row} lacks {_key_of(missing[0])!r}"
            f"{nearest(missing[0], have)} and has {have!r}: complete the row, or leave it out."
        )
    if step is None:
        return error
    where = f"Item {_names(step)} of {row}: {describe(step.item.func)}"
    if isinstance(error, StopIteration):
        return DataItemError(
            f"{where} must yield {len(step.item.provides)} times, for "
            f"{list(step.item.provides)!r}; it stopped before: add the missing "
            "yield, or take the key out of @provides."
        )
    if isinstance(error, _WrongNumberError):
        return DataItemError(
            f"{where} must give {len(step.keys)} values, for {_names(step)}; it did not "
            f"({error}): return that many, or change @provides."
        )
    return DataItemError(
        f"{where} failed on {_shown(step, values)}: {type(error).__name__}: {error}. "
        "Mend that row or what it points to, or the function."
    )


def describe(func: Any) -> str:
    """Name a function so that it is found: its qualified name, file and line."""
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
    return repr([_key_of(place) for place in step.keys])


def _shown(step: Step, values: Mapping[Any, Any]) -> str:
    parts = []
    for place in [step.takes] if isinstance(step.takes, str) else step.takes:
        key, value = _key_of(place), values.get(place)
        text = repr(value) if isinstance(value, (str, int, float)) else ""
        kind = type(value).__name__
        parts.append(f"{key}={text}" if text and len(text) <= 200 else f"{key}: {kind}")  # noqa: PLR2004
    return f"({', '.join(parts)})"
