"""Marks: how a class says which of its methods save, load and transfer it.

A mark is only an attribute of a function, the same one that SpeechBrain sets, so that classes
of either, and those that import neither, are recognised.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, overload

SAVER = "_speechbrain_saver"
LOADER = "_speechbrain_loader"
TRANSFER = "_speechbrain_transfer"

# Set on a class whose saver has to run on every rank, since it gathers before it writes.
ALL_RANKS = "_brain_save_on_all_ranks"

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)


def mark_as_saver(method: F) -> F:
    """Mark a method as the one that saves: ``def save(self, path)``.

    The checkpointer finds it by the mark, also in subclasses, where an override that carries no
    mark of its own runs too.

    Raises
    ------
    TypeError
        If it cannot be called with a path.
    """
    return _mark(method, SAVER, "saver", "(self, path)", 2)


def mark_as_loader(method: F) -> F:
    """Mark a method as the one that loads: ``def load(self, path, end_of_epoch)``.

    Raises
    ------
    TypeError
        If it cannot be called with a path and a flag.
    """
    return _mark(method, LOADER, "loader", "(self, path, end_of_epoch)", 3)


def mark_as_transfer(method: F) -> F:
    """Mark a method as the one that takes over pretrained parameters: ``def take(self, path)``.

    `Pretrainer` prefers it to the loader, and uses the loader where there is none.

    Raises
    ------
    TypeError
        If it cannot be called with a path.
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
    """Decorate a class whose methods are marked.

    Nothing is registered anywhere: the marks themselves are what a checkpointer reads.

    Parameters
    ----------
    cls : type
        The class.
    save_on_main_only : bool
        False has the saver run on every rank, for one that gathers before it writes.

    Returns
    -------
    type
        The same class.

    Raises
    ------
    TypeError
        If no method carries a mark.

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
                f"a class with checkpoint hooks marks at least one method, got {decorated!r} "
                f"without; put @mark_as_saver and @mark_as_loader over its methods"
            )
        setattr(decorated, ALL_RANKS, not save_on_main_only)
        return decorated

    return decorate if cls is None else decorate(cls)


def marked_name(cls: type, mark: str) -> str | None:
    """Return the name of the method that carries a mark, the most derived class's first."""
    for base in cls.__mro__:
        for name, value in vars(base).items():
            if getattr(value, mark, False) is True:
                return name
    return None


def marked_method(obj: object, mark: str) -> Callable[..., Any] | None:
    """Return the object's method of that name, so that a subclass's override is what runs."""
    name = marked_name(type(obj), mark)
    return None if name is None else getattr(obj, name)


def _mark(method: F, mark: str, what: str, signature: str, arguments: int) -> F:
    try:
        inspect.signature(method).bind(*range(arguments))
    except TypeError:
        raise TypeError(
            f"a checkpoint {what} has the signature {signature}, got "
            f"{inspect.signature(method)}; change it to def {method.__name__}{signature}"
        ) from None
    setattr(method, mark, True)
    return method
