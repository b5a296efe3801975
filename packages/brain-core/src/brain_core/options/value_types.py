"""The types of options, and the check of a value against one."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from brain_core.options.suggestion import nearest

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["check_type", "type_hints"]

# Evaluating the annotations takes a third of the time that making a small Brain does.
type_hints: Callable[[type], dict[str, Any]] = cache(get_type_hints)


def check_type(name: str, value: Any, hint: Any) -> None:
    """Check that an option has a value of its type.

    Raises
    ------
    ValueError
        If it has not, with what the type allows.
    """
    alternatives = [a for a in get_args(hint) if a is not type(None)]
    if value is None and len(alternatives) < len(get_args(hint)):
        return
    if get_args(hint) and isinstance(get_args(hint)[0], str):  # Literal
        if value not in get_args(hint):
            choices = ", ".join(map(repr, get_args(hint)))
            raise ValueError(
                f"{name} must be one of {choices}, got {value!r}."
                f"{nearest(str(value), get_args(hint))}"
            )
        return
    kind = hint if isinstance(hint, type) else None
    if kind in (bool, str) and not isinstance(value, kind):
        raise ValueError(f"{name} must be a {kind.__name__}, got {value!r}.")
    wants_int = kind is int or int in alternatives
    if (wants_int or kind is float) and not _is_number(value, whole=wants_int):
        article = "an int" if wants_int else "a number"
        raise ValueError(f"{name} must be {article}, got {value!r}.")


def _is_number(value: Any, *, whole: bool) -> bool:
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
