"""Find how an object is saved and loaded, before anything is written.

In this order: a custom hook of the checkpointer; a marked method; a hook registered for the type;
`state_dict` and `load_state_dict`; the fields of a dataclass.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from brain_ckpt.recoverables.marks import ALL_RANKS, LOADER, SAVER, TRANSFER, marked_method
from brain_ckpt.recoverables.serialization import read_state
from brain_ckpt.recoverables.states import get_state, set_state
from brain_dist import get_rank

Saver = Callable[[Any, Path], Any]
Loader = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class PathHook:
    """A hook that reads or writes the file itself.

    Parameters
    ----------
    call : callable
        ``call(path)`` for a saver, ``call(path, end_of_epoch)`` for a loader.
    all_ranks : bool
        Whether every rank calls it.
    """

    call: Callable[..., Any]
    all_ranks: bool = False


class HookRegistry:
    """Hooks by type; a subclass uses the hooks of its nearest registered base class.

    A registry is an instance that is passed to a checkpointer; there is no global one.

    Parameters
    ----------
    savers : mapping of type to callable
        ``saver(obj, path)``.
    loaders : mapping of type to callable
        ``loader(obj, path, end_of_epoch)``.
    """

    def __init__(
        self,
        savers: Mapping[type, Saver] = MappingProxyType({}),
        loaders: Mapping[type, Loader] = MappingProxyType({}),
    ) -> None:
        self._savers = dict(savers)
        self._loaders = dict(loaders)

    def register(self, cls: type, saver: Saver, loader: Loader) -> None:
        """Save and load objects of a class and its subclasses with two functions."""
        self._savers[cls] = saver
        self._loaders[cls] = loader

    def saver(self, obj: object) -> Saver | None:
        """Return the saver for an object, or None."""
        saver: Saver | None = _by_type(obj, self._savers)
        return saver

    def loader(self, obj: object) -> Loader | None:
        """Return the loader for an object, or None."""
        loader: Loader | None = _by_type(obj, self._loaders)
        return loader


def torch_save(obj: Any, path: str | Path) -> None:
    """Save the state of an object with torch.save; only the first rank writes.

    Parameters
    ----------
    obj : object
        An object with a `state_dict`.
    path : str or Path
        The file, which is overwritten.
    """
    if get_rank() == 0:
        torch.save(get_state(obj), path)


def torch_recovery(obj: Any, path: str | Path, end_of_epoch: bool) -> None:
    """Load the state of an object, without running code from the file.

    Parameters
    ----------
    obj : object
        An object with a `load_state_dict`.
    path : str or Path
        The file.
    end_of_epoch : bool
        Ignored; part of the signature of loaders.

    Raises
    ------
    CheckpointMismatchError
        If a key or a shape does not fit.
    CheckpointDamagedError, UnsafeCheckpointError
        If the file cannot be read, or needs code that it names.
    """
    del end_of_epoch
    set_state(obj, read_state(Path(path)), Path(path).stem)


def find_saver(obj: Any, custom: Saver | None, registry: HookRegistry) -> PathHook | None:
    """Return the hook that saves an object, or None if its state is saved.

    Raises
    ------
    TypeError
        If the object has neither a state nor a hook.
    """
    if custom is not None and custom is not torch_save:
        return PathHook(lambda path: custom(obj, path), getattr(custom, ALL_RANKS, False))
    if custom is None:
        method = marked_method(obj, SAVER)
        if method is not None:
            return PathHook(method, getattr(type(obj), ALL_RANKS, False))
        registered = registry.saver(obj)
        if registered is not None and registered is not torch_save:
            return PathHook(
                lambda path: registered(obj, path), getattr(registered, ALL_RANKS, False)
            )
    _require_state(obj, "state_dict")
    return None


def find_loader(obj: Any, custom: Loader | None, registry: HookRegistry) -> PathHook | None:
    """Return the hook that loads an object, or None if its state is loaded.

    Raises
    ------
    TypeError
        If the object has neither a state nor a hook.
    """
    if custom is not None and custom is not torch_recovery:
        return PathHook(_with_or_without_epoch(custom, obj))
    if custom is None:
        method = marked_method(obj, LOADER)
        if method is not None:
            return PathHook(method)
        registered = registry.loader(obj)
        if registered is not None and registered is not torch_recovery:
            return PathHook(_with_or_without_epoch(registered, obj))
    _require_state(obj, "load_state_dict")
    return None


def find_transfer(obj: Any) -> Callable[[Path], Any] | None:
    """Return the marked method that loads pretrained parameters, or None."""
    return marked_method(obj, TRANSFER)


def _by_type(obj: object, hooks: Mapping[type, Any]) -> Any:
    return next((hooks[cls] for cls in type(obj).__mro__ if cls in hooks), None)


def _require_state(obj: Any, method: str) -> None:
    stateful = callable(getattr(obj, "state_dict", None)) and callable(
        getattr(obj, "load_state_dict", None)
    )
    counter = dataclasses.is_dataclass(obj) and not isinstance(obj, type)
    if not stateful and not counter:
        raise TypeError(
            f"a recoverable must have state_dict and load_state_dict, marked methods, or custom "
            f"hooks, got {obj!r} of type {type(obj).__name__} without {method}; add the two "
            f"methods, or pass custom_save_hook and custom_load_hook to add_recoverable"
        )


def _with_or_without_epoch(hook: Loader, obj: Any) -> Callable[[Path, bool], Any]:
    # SpeechBrain documents hook(obj, path) and calls hook(obj, path, end_of_epoch).
    try:
        inspect.signature(hook).bind(obj, Path(), True)  # noqa: FBT003 - called with a positional flag
    except TypeError:
        return lambda path, end_of_epoch: hook(obj, path)  # noqa: ARG005 - this hook takes no flag
    except ValueError:
        pass
    return lambda path, end_of_epoch: hook(obj, path, end_of_epoch)
