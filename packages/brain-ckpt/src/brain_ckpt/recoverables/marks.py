"""Marks on the methods of a class that save it, load it and transfer parameters to it.

A mark is an attribute of a function, with the name that SpeechBrain uses, so classes marked by
either package, or by hand, are recognized.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, overload

SAVER = "_speechbrain_saver"
LOADER = "_speechbrain_loader"
TRANSFER = "_speechbrain_transfer"

# Set on a class whose saver runs on every rank, because it gathers before it writes.
ALL_RANKS = "_brain_save_on_all_ranks"

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)


def mark_as_saver(method: F) -> F:
    """Mark the method that saves an object: ``def save(self, path)``.

    An override in a subclass is called whether or not it is marked again.

    Raises
    ------
    TypeError
        If the method cannot be called with a path.
    """
    return _mark(method, SAVER, "saver", "(self, path)", 2)


def mark_as_loader(method: F) -> F:
    """Mark the method that loads an object: ``def load(self, path, end_of_epoch)``.

    Raises
    ------
    TypeError
        If the method cannot be called with a path and a flag.
    """
    return _mark(method, LOADER, "loader", "(self, path, end_of_epoch)", 3)


def mark_as_transfer(method: F) -> F:
    """Mark the method that loads pretrained parameters: ``def transfer(self, path)``.

    `Pretrainer` calls it instead of the marked loader.

    Raises
    ------
    TypeError
        If the method cannot be called with a path.
    """
    return _mark(method, TRANSFER, "transfer hook", "(self, path)", 2)


@overload
def register_checkpoint_hooks(cls: C, save_on_main_only: bool = True) -> C: ...
@overload
def register_checkpoint_hooks(
    cls: None = None, save_on_main_only: bool = True
) -> Callable[[C], C]: ...
def register_checkpoint_hooks(
    cls: C | None = None, save_on_main_only: bool = True
) -> C | Callable[[C], C]:
    """Check that the methods of a class are marked; a class decorator.

    Nothing is registered: a checkpointer reads the marks themselves.

    Parameters
    ----------
    cls : type
        The class.
    save_on_main_only : bool
        False runs the saver on every rank, for a saver that gathers before it writes.

    Returns
    -------
    type
        The same class.

    Raises
    ------
    TypeError
        If no method is marked.

    Examples
    --------
    >>> @register_checkpoint_hooks
    ... class Counter:
    ...     count = 0
    ...
    ...     @mark_as_saver
    ...     def save(self, path):
    ...         path.write_text(str(self.count))
    ...
    ...     @mark_as_loader
    ...     def load(self, path, end_of_epoch):
    ...         self.count = int(path.read_text())
    """

    def decorate(decorated: C) -> C:
        if not any(marked_name(decorated, mark) for mark in (SAVER, LOADER, TRANSFER)):
            raise TypeError(
                f"a class with checkpoint hooks must mark at least one method, got {decorated!r} "
                f"without marks; decorate its methods with @mark_as_saver and @mark_as_loader"
            )
        setattr(decorated, ALL_RANKS, not save_on_main_only)
        return decorated

    return decorate if cls is None else decorate(cls)


def marked_name(cls: type, mark: str) -> str | None:
    """Return the name of the marked method; the most derived class comes first."""
    for base in cls.__mro__:
        for name, value in vars(base).items():
            if getattr(value, mark, False) is True:
                return name
    return None


def marked_method(obj: object, mark: str) -> Callable[..., Any] | None:
    """Return the marked method of an object, or its override in a subclass."""
    name = marked_name(type(obj), mark)
    return None if name is None else getattr(obj, name)


def _mark(method: F, mark: str, kind: str, signature: str, arguments: int) -> F:
    try:
        inspect.signature(method).bind(*range(arguments))
    except TypeError:
        raise TypeError(
            f"a checkpoint {kind} must have the signature {signature}, got "
            f"{inspect.signature(method)}; change it to def {method.__name__}{signature}"
        ) from None
    setattr(method, mark, True)
    return method
