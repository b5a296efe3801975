"""Encode a state as values that torch's safe loader reads, and restore the types of the values.

A state may hold arrays, paths, dates and other types that a safe loader refuses.  They are saved as
tensors, numbers, strings and lists in the same place, so that any program reads a sensible value,
and the types are noted in an attribute of the state.  A note is [path, kind, details], where the
path holds the index of the value in each container.
"""

from __future__ import annotations

import collections
import copy
import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from brain_ckpt.errors import CheckpointSaveError, UnsafeCheckpointError
from brain_ckpt.recoverables.codecs import CODECS, DECODERS
from brain_ckpt.recoverables.numpy_codecs import NUMPY_DECODERS, numpy_codec
from brain_ckpt.recoverables.objects import decode_object, encode_object
from brain_ckpt.recoverables.safe_globals import full_name
from brain_ckpt.recoverables.tensor_check import is_loadable

if TYPE_CHECKING:
    from collections.abc import Callable

    from brain_ckpt.recoverables.safe_globals import SafeGlobals

NOTES = "_brain_ckpt_types"
_WRAPPED = "state"

_ATOMIC = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes, bytearray),
        *(torch.dtype, torch.device, torch.Size, torch.layout, torch.storage.UntypedStorage),
    }
)
_DICTS = (dict, collections.OrderedDict, collections.Counter)
_DICTS_BY_NAME = {cls.__name__: cls for cls in _DICTS}
_DECODERS: dict[str, Callable[[Any, Any], Any]] = {
    **DECODERS,
    **NUMPY_DECODERS,
    "dict": lambda plain, _: dict(plain),
    "wrapped": lambda plain, _: plain[_WRAPPED],
    "items": lambda pairs, name: _DICTS_BY_NAME[name](dict(map(tuple, pairs))),
}
_MAX_SHOWN = 3


class _Unsafe(NamedTuple):
    where: str
    value: Any


def encode_state(state: Any, name: str, safe_globals: SafeGlobals) -> Any:
    """Return a state that torch's safe loader reads; the state itself is not changed.

    Parameters
    ----------
    state : object
        The state of a recoverable.
    name : str
        The name of the recoverable, for the errors.
    safe_globals : SafeGlobals
        Registered classes, whose objects are saved, too.

    Raises
    ------
    CheckpointSaveError
        If a value could not be restored; the text has its path and type.
    """
    encoder = _Encoder(safe_globals)
    plain = encoder.encode(state, (), name)
    if encoder.unsafe:
        raise _save_error(name, encoder.unsafe)
    if not encoder.notes:
        return plain
    if type(plain) is collections.OrderedDict:
        marked = copy.copy(plain)
    elif type(plain) is dict:
        marked = collections.OrderedDict(plain)
        encoder.notes.append([[], "dict", None])
    else:
        marked = collections.OrderedDict({_WRAPPED: plain})
        encoder.notes = [[[0, *path], kind, details] for path, kind, details in encoder.notes]
        encoder.notes.append([[], "wrapped", None])
    setattr(marked, NOTES, encoder.notes)
    return marked


def decode_state(state: Any, where: str, safe_globals: SafeGlobals) -> Any:
    """Restore the types of the values of a state that `encode_state` returned.

    Parameters
    ----------
    state : object
        A loaded state, which may be changed.
    where : str
        The path of its file, for the errors.
    safe_globals : SafeGlobals
        Registered classes.

    Raises
    ------
    UnsafeCheckpointError
        If a class is not registered, or a note does not fit its value.
    """
    notes = getattr(state, NOTES, None) if type(state) is collections.OrderedDict else None
    if notes is None:
        return state
    delattr(state, NOTES)
    try:
        return _decode(state, _tree(notes), safe_globals)
    except _UnregisteredError as error:
        raise UnsafeCheckpointError(
            f"{where} may hold objects of registered classes only, got {error.args[0]!r}; pass it "
            f"in Checkpointer(safe_globals=[...]) or to torch.serialization.add_safe_globals"
        ) from None
    except Exception as error:
        raise UnsafeCheckpointError(
            f"{where} must have types that fit its values, got: {error!r}; do not load this file"
        ) from error


def without_notes(state: Any) -> Any:
    """Return an encoded state as it was saved, with arrays as tensors and other types plain."""
    if type(state) is not collections.OrderedDict or not hasattr(state, NOTES):
        return state
    is_wrapped = any(kind == "wrapped" for _, kind, _ in getattr(state, NOTES))
    return state[_WRAPPED] if is_wrapped else state


class _UnregisteredError(Exception):
    """The name of a class in a file is not registered."""


class _Encoder:
    def __init__(self, safe_globals: SafeGlobals) -> None:
        self.notes: list[list[Any]] = []
        self.unsafe: list[_Unsafe] = []
        self._safe_globals = safe_globals
        self._containers: set[int] = set()  # that are being encoded, to find cycles

    def encode(self, value: Any, path: tuple[int, ...], where: str) -> Any:
        cls = type(value)
        if cls in _ATOMIC:
            return value
        if isinstance(value, torch.Tensor) and cls not in CODECS:
            return value if is_loadable(value, self._safe_globals) else self._refuse(value, where)
        if id(value) in self._containers:
            self.unsafe.append(_Unsafe(where, value))
            return None
        self._containers.add(id(value))
        try:
            return self._encode_parts(value, cls, path, where)
        finally:
            self._containers.discard(id(value))

    def _encode_parts(self, value: Any, cls: type, path: tuple[int, ...], where: str) -> Any:
        if cls in _DICTS:
            return self._encode_dict(value, path, where)
        if cls is list or cls is tuple:
            return self._encode_sequence(value, path, where)
        if cls is set and all(map(_is_plain_key, value)):
            return value
        codec = CODECS.get(cls) or numpy_codec(value)
        encoded = codec.encode(value) if codec is not None else None
        if codec is not None and encoded is not None:
            return self._note(path, codec.kind, encoded, where)
        return self._encode_registered(value, path, where)

    def _encode_registered(self, value: Any, path: tuple[int, ...], where: str) -> Any:
        name = self._safe_globals.name(value) if callable(value) else None
        if name is not None:
            return self._note(path, "global", (None, name), where)
        if isinstance(value, enum.Enum):
            name = self._safe_globals.name(type(value))
            if name is not None:
                return self._note(path, "enum", (value.value, name), where)
        encoded = encode_object(value, self._safe_globals)
        if encoded is not None:
            return self._note(path, "object", encoded, where)
        return self._refuse(value, where)

    def _note(self, path: tuple[int, ...], kind: str, encoded: tuple[Any, Any], where: str) -> Any:
        plain, details = encoded
        self.notes.append([list(path), kind, details])
        # The parts of the plain value lie below the value, under the same path.
        return self.encode(plain, (*path, _INNER), where)

    def _encode_dict(self, value: Any, path: tuple[int, ...], where: str) -> Any:
        if not all(map(_is_plain_key, value)):
            kind = type(value).__name__
            pairs = [list(pair) for pair in value.items()]
            return self._note(path, "items", (pairs, kind), where)
        parts = [
            part
            if type(part) in _ATOMIC
            else self.encode(part, (*path, number), f"{where}{_step(key)}")
            for number, (key, part) in enumerate(value.items())
        ]
        if all(new is old for new, old in zip(parts, value.values(), strict=True)):
            return value
        changed = copy.copy(value)
        for key, part in zip(value, parts, strict=True):
            changed[key] = part
        return changed

    def _encode_sequence(self, value: Any, path: tuple[int, ...], where: str) -> Any:
        parts = [
            part
            if type(part) in _ATOMIC
            else self.encode(part, (*path, number), f"{where}[{number}]")
            for number, part in enumerate(value)
        ]
        if all(new is old for new, old in zip(parts, value, strict=True)):
            return value
        return type(value)(parts)

    def _refuse(self, value: Any, where: str) -> Any:
        self.unsafe.append(_Unsafe(where, value))
        return None


# The step of a path from a noted value to its plain value.
_INNER = -1


class _Node:
    """The notes below one value."""

    def __init__(self) -> None:
        self.kind: str | None = None
        self.details: Any = None
        self.children: dict[int, _Node] = {}


def _tree(notes: Any) -> _Node:
    root = _Node()
    for path, kind, details in notes:
        node = root
        for step in path:
            node = node.children.setdefault(step, _Node())
        node.kind, node.details = kind, details
    return root


def _decode(value: Any, node: _Node, safe_globals: SafeGlobals) -> Any:
    inner = node.children.pop(_INNER, None)
    if inner is not None:
        value = _decode(value, inner, safe_globals)
    if node.children:
        value = _decode_parts(value, node, safe_globals)
    return value if node.kind is None else _restore(value, node, safe_globals)


def _decode_parts(value: Any, node: _Node, safe_globals: SafeGlobals) -> Any:
    if isinstance(value, Mapping):
        keys = list(value)
        for number, child in node.children.items():
            value[keys[number]] = _decode(value[keys[number]], child, safe_globals)  # type: ignore[index]  # a dict
        return value
    parts = list(value)
    for number, child in node.children.items():
        parts[number] = _decode(parts[number], child, safe_globals)
    return parts if isinstance(value, list) else tuple(parts)


def _restore(value: Any, node: _Node, safe_globals: SafeGlobals) -> Any:
    kind, details = node.kind, node.details
    if kind in _DECODERS:
        return _DECODERS[kind](value, details)
    try:
        registered = safe_globals.get(details)
    except KeyError:
        raise _UnregisteredError(details) from None
    if kind == "global":
        return registered
    if kind == "enum":
        return registered(value)
    if kind == "object":
        return decode_object(registered, value)
    raise ValueError(f"unknown type {kind!r}")


def _is_plain_key(key: Any) -> bool:
    return type(key) in _ATOMIC or (type(key) is tuple and all(map(_is_plain_key, key)))


def _step(key: Any) -> str:
    return f".{key}" if isinstance(key, str) else f"[{key!r}]"


def _describe(value: Any) -> str:
    is_named = callable(value) and hasattr(value, "__qualname__")
    return full_name(value if is_named else type(value))


def _save_error(name: str, unsafe: list[_Unsafe]) -> CheckpointSaveError:
    shown = ", ".join(f"{one.where} ({_describe(one.value)})" for one in unsafe[:_MAX_SHOWN])
    more = f" and {len(unsafe) - _MAX_SHOWN} more" if len(unsafe) > _MAX_SHOWN else ""
    return CheckpointSaveError(
        f"the state of {name!r} must hold tensors, arrays and plain values to be restored without "
        f"running code, got {shown}{more}; return plain values from state_dict, or register the "
        f"class with Checkpointer(safe_globals=[...]) or torch.serialization.add_safe_globals"
    )
