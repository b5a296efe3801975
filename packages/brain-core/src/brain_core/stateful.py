"""Objects with a state to save: whether one has a state, and what to call it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["is_stateful", "named_by_class"]

T = TypeVar("T")


def is_stateful(obj: object) -> bool:
    """Return whether an object has ``state_dict``, or a method that saves it to a file."""
    if hasattr(obj, "state_dict") and hasattr(obj, "load_state_dict"):
        return True
    methods = (getattr(type(obj), name, None) for name in dir(type(obj)))
    return any(getattr(method, "_speechbrain_saver", False) for method in methods)


def named_by_class(objects: Iterable[T]) -> dict[str, T]:
    """Return objects by the name of their class, the second of a class with a number.

    Examples
    --------
    >>> named_by_class([1, 2, "a"])
    {'int': 1, 'int-2': 2, 'str': 'a'}
    """
    named: dict[str, T] = {}
    counts: dict[str, int] = {}
    for obj in objects:
        kind = type(obj).__name__
        counts[kind] = count = counts.get(kind, 0) + 1
        named[kind if count == 1 else f"{kind}-{count}"] = obj
    return named
