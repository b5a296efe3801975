"""Objects of registered classes as plain values, and back, by the pickle protocol."""

from __future__ import annotations

import copyreg
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brain_ckpt.recoverables.safe_globals import SafeGlobals

_PROTOCOL = 2
_PARTS = 5


def encode_object(value: Any, safe_globals: SafeGlobals) -> tuple[Any, str] | None:
    """Return an object's parts and the name of its class; None if the class is not registered.

    The parts are [way, arguments, keywords, state, items, pairs], as in `object.__reduce__`.
    """
    if safe_globals.name(type(value)) is None:
        return None
    try:
        reduced = value.__reduce_ex__(_PROTOCOL)
    except TypeError:  # such as an open file
        return None
    if isinstance(reduced, str) or len(reduced) > _PARTS:
        return None
    parts: list[Any] = [*reduced, *[None] * (_PARTS - len(reduced))]
    make, arguments, state, items, pairs = parts
    way = "call"
    keywords: dict[str, Any] = {}
    if make is copyreg.__newobj__:  # type: ignore[attr-defined]  # not in the stubs
        way, (make, *arguments) = "new", arguments
    elif make is copyreg.__newobj_ex__:  # type: ignore[attr-defined]  # not in the stubs
        way, (make, arguments, keywords) = "new", arguments
    name = safe_globals.name(make)
    if name is None:
        return None
    listed = None if items is None else list(items)
    paired = None if pairs is None else [list(pair) for pair in pairs]
    return [way, list(arguments), dict(keywords), state, listed, paired], name


def decode_object(make: Any, parts: Any) -> Any:
    """Return the object that a registered class or function makes from its parts."""
    way, arguments, keywords, state, items, pairs = parts
    value = make.__new__(make, *arguments, **keywords) if way == "new" else make(*arguments)
    if state is not None:
        _set_state(value, state)
    for item in items or ():
        value.append(item)
    for key, inner in pairs or ():
        value[key] = inner
    return value


def _set_state(value: Any, state: Any) -> None:
    if hasattr(value, "__setstate__"):
        value.__setstate__(state)
        return
    attributes, slots = state if isinstance(state, tuple) else (state, None)
    if attributes:
        value.__dict__.update(attributes)
    for name, inner in (slots or {}).items():
        setattr(value, name, inner)
