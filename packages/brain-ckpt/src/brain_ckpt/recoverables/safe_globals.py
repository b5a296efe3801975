"""Classes and functions that the user has registered as safe to restore."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

SafeGlobal = Callable[..., Any] | tuple[Callable[..., Any], str]


class SafeGlobals:
    """Registered classes and functions, by name: those given, and torch's own list.

    Parameters
    ----------
    registered : iterable
        Classes or functions; or pairs of one and its name in files, if that has changed.
    """

    def __init__(self, registered: Iterable[SafeGlobal] = ()) -> None:
        self._registered = list(registered)
        for entry in self._registered:
            obj = entry[0] if isinstance(entry, tuple) else entry
            if not callable(obj):
                raise TypeError(
                    f"safe_globals must be classes or functions, got {obj!r}; pass its class"
                )

    def name(self, obj: Any) -> str | None:
        """Return the name of a registered class or function; None if it is not registered."""
        for name, registered in self._by_name().items():
            if registered is obj:
                return name
        return None

    def get(self, name: Any) -> Any:
        """Return the registered class or function of a name.

        Raises
        ------
        KeyError
            If there is none.
        """
        return self._by_name()[name]

    def during_load(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context manager in which torch's safe loader knows them."""
        if not self._registered:
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[Any] = torch.serialization.safe_globals(
            self._registered
        )
        return context

    def _by_name(self) -> dict[str, Any]:
        entries = [*torch.serialization.get_safe_globals(), *self._registered]
        pairs = [
            entry if isinstance(entry, tuple) else (entry, full_name(entry)) for entry in entries
        ]
        return {name: obj for obj, name in pairs}


def full_name(obj: Any) -> str:
    """Return module and qualified name of a class or function."""
    return f"{obj.__module__}.{obj.__qualname__}"
