"""Items of a data pipeline: values of a row, and functions that compute further values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

Keys = Sequence[str]


@dataclass
class StaticItem:
    """An item that is a value of the row, under ``key``."""

    key: str


class DynamicItem:
    """A function with the keys of its arguments and of its results.

    Usually made by :func:`takes` and :func:`provides`.

    Parameters
    ----------
    takes : sequence of str
        Keys of the items that the function is called with, in order.
    func : callable
        Computes the item.
    provides : sequence of str
        Keys of what it returns. With one key the returned value is the item; with several, it must
        return one value for each.
    """

    def __init__(
        self,
        takes: Keys | None = None,
        func: Callable[..., Any] | None = None,
        provides: Sequence[Any] | None = None,
    ) -> None:
        self.takes: Keys = takes if takes is not None else []
        self.func = func
        self.provides: Sequence[Any] = provides if provides is not None else []

    def __call__(self, *args: Any) -> Any:
        """Compute the item from its arguments."""
        if self.func is None:
            raise TypeError(
                f"An item needs a function; the item of {self.provides!r} has none: pass func=, or "
                "decorate the function with @takes and @provides."
            )
        return self.func(*args)

    def next_takes(self) -> Keys:
        """Return the keys of the arguments of the next call."""
        return self.takes

    def next_provides(self) -> Keys:
        """Return the keys of what the next call returns."""
        return self.provides

    def provided_in_order(self) -> list[Keys]:
        """Return the keys that each call for one row provides."""
        return [self.provides]

    def reset(self) -> None:
        """Clear the state of the last row."""


class GeneratorDynamicItem(DynamicItem):
    """A generator function that provides its items one ``yield`` at a time.

    The code after a ``yield`` runs only if a later key is requested, so the first key can be used
    to fit what the second one needs, for example a vocabulary. ``provides`` has one entry for each
    ``yield``: a key, or a list of keys if several values are yielded at once.

    Examples
    --------
    >>> @takes("text")
    ... @provides("words", "count")
    ... def split(text):
    ...     words = text.split()
    ...     yield words
    ...     yield len(words)
    >>> split("this is it"), split()
    (['this', 'is', 'it'], 3)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.current_generator: Generator[Any, Any, Any] | None = None
        self.num_provided_items = 0

    def __call__(self, *args: Any) -> Any:
        """Return what the generator yields next; the first call starts it."""
        if self.num_provided_items == len(self.provides):
            raise RuntimeError(
                f"A generator item may be called {len(self.provides)} times, once for each of its "
                f"keys; the item of {self.provides!r} was called again: call reset() between rows."
            )
        if self.current_generator is None:
            self.current_generator = super().__call__(*args)
        out = next(self.current_generator)
        self.num_provided_items += 1
        return out

    def next_takes(self) -> Keys:
        """Return the keys of the arguments of the next call: none after the first."""
        return self.takes if self.current_generator is None else []

    def next_provides(self) -> Keys:
        """Return the keys of what the next ``yield`` provides."""
        return _as_list(self.provides[self.num_provided_items])

    def provided_in_order(self) -> list[Keys]:
        """Return the keys of each ``yield``, in order."""
        return [_as_list(keys) for keys in self.provides]

    def reset(self) -> None:
        """Close the running generator, so that the next call starts a new one."""
        if self.current_generator is not None:
            self.current_generator.close()
        self.current_generator = None
        self.num_provided_items = 0


def takes(*argkeys: str) -> Callable[[Any], DynamicItem]:
    """Decorate a function, generator function or item with the keys that it takes.

    Raises
    ------
    ValueError
        If the item already takes keys.

    Examples
    --------
    >>> @takes("text")
    ... @provides("words")
    ... def split(text):
    ...     return text.split()
    >>> split("a b")
    ['a', 'b']
    """
    return _set_keys("takes", argkeys)


def provides(*output_keys: Any) -> Callable[[Any], DynamicItem]:
    """Decorate a function, generator function or item with the keys that it provides.

    With several keys a function returns one value for each, and a generator yields them one by one.
    A list among the keys is for several values in one ``yield``.

    Raises
    ------
    ValueError
        If the item already provides keys.

    Examples
    --------
    >>> @provides("wav", ["left", "right"])
    ... def read():
    ...     yield [0.1, 0.2]
    ...     yield 0.1, 0.2
    >>> read.provided_in_order()
    [['wav'], ['left', 'right']]
    """
    return _set_keys("provides", output_keys)


def _set_keys(attribute: str, keys: tuple[Any, ...]) -> Callable[[Any], DynamicItem]:
    """Return a decorator that sets ``takes`` or ``provides`` of an item once."""

    def decorator(obj: Any) -> DynamicItem:
        if isinstance(obj, DynamicItem):
            item = obj
        else:
            item_class = GeneratorDynamicItem if inspect.isgeneratorfunction(obj) else DynamicItem
            item = item_class(func=obj)
        present = getattr(item, attribute)
        if present:
            raise ValueError(
                f"An item must be decorated with @{attribute} once; it has {list(present)!r}, and "
                f"got {list(keys)!r}: use one @{attribute} with all keys."
            )
        setattr(item, attribute, keys)
        return item

    return decorator


def _as_list(keys: Any) -> list[str]:
    return [keys] if isinstance(keys, str) else list(keys)
