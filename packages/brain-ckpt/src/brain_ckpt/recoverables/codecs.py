"""Types of the standard library and torch as plain values, and back.

A codec turns a value into lists, numbers and strings that torch's safe loader reads, and restores
the value from them.  Restoring calls only the constructors in this module, with checked arguments.
"""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import fractions
import pathlib
import types
import uuid
import zoneinfo
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

if TYPE_CHECKING:
    from collections.abc import Callable


class Codec(NamedTuple):
    """How values of one type are saved.

    Parameters
    ----------
    kind : str
        The name of the type in a file.
    encode : callable
        Returns (plain value, details), or None if this value cannot be saved.  The parts of the
        plain value are encoded in turn; the details are strings, integers and lists of them.
    decode : callable
        Takes both and returns the value; raises TypeError or ValueError if they do not fit.
    """

    kind: str
    encode: Callable[[Any], tuple[Any, Any] | None]
    decode: Callable[[Any, Any], Any]


# Factories that a defaultdict can be saved with, by their names in a file.
_FACTORIES: dict[str, Callable[[], Any] | None] = {
    "None": None,
    "bool": bool,
    "bytes": bytes,
    "complex": complex,
    "dict": dict,
    "float": float,
    "frozenset": frozenset,
    "int": int,
    "list": list,
    "set": set,
    "str": str,
    "tuple": tuple,
    "Counter": collections.Counter,
    "OrderedDict": collections.OrderedDict,
    "deque": collections.deque,
}
_IS_POSIX = isinstance(pathlib.Path(), pathlib.PosixPath)


def _by_parts(
    kind: str, get_parts: Callable[[Any], list[Any]], make: Callable[..., Any], *types_: Any
) -> Codec:
    """Return a codec for a type that is made from a fixed number of parts."""

    def decode(plain: Any, _: Any) -> Any:
        if not isinstance(plain, list) or len(plain) != len(types_):
            raise ValueError(f"a {kind} has {len(types_)} parts, got {plain!r}")
        return make(*map(_typed, plain, types_))

    return Codec(kind, lambda value: (get_parts(value), None), decode)


def _by_string(kind: str, make: Callable[[str], Any]) -> Codec:
    """Return a codec for a type that is made from a string."""
    return Codec(kind, lambda value: (str(value), None), lambda plain, _: make(_typed(plain, str)))


def _by_list(kind: str, make: Callable[[Any], Any]) -> Codec:
    """Return a codec for a type that is made from a list."""
    return Codec(
        kind, lambda value: (list(value), None), lambda plain, _: make(_typed(plain, list))
    )


def _typed(value: Any, expected: Any) -> Any:
    if not isinstance(value, expected):
        raise TypeError(f"expected {expected}, got {value!r}")
    return value


def _encode_defaultdict(value: Any) -> tuple[Any, Any] | None:
    for name, factory in _FACTORIES.items():
        if value.default_factory is factory:
            return dict(value), name
    return None


def _decode_defaultdict(plain: Any, name: Any) -> Any:
    if name not in _FACTORIES:
        raise ValueError(f"unknown factory {name!r}")
    return collections.defaultdict(_FACTORIES[name], _typed(plain, dict))


def _decode_deque(plain: Any, length: Any) -> Any:
    return collections.deque(_typed(plain, list), _typed(length, _OPTIONAL_INT))


def _decode_datetime(*parts: Any) -> dt.datetime:
    year, month, day, hour, minute, second, microsecond, fold, zone = parts
    return dt.datetime(year, month, day, hour, minute, second, microsecond, zone, fold=fold)


def _decode_time(*parts: Any) -> dt.time:
    hour, minute, second, microsecond, fold, zone = parts
    return dt.time(hour, minute, second, microsecond, zone, fold=fold)


def _encode_timezone(value: dt.timezone) -> tuple[Any, Any]:
    offset = value.utcoffset(None)
    default_name = dt.timezone(offset).tzname(None)
    name = value.tzname(None)
    return offset, None if name == default_name else name


def _decode_timezone(plain: Any, name: Any) -> dt.timezone:
    offset = _typed(plain, dt.timedelta)
    return dt.timezone(offset) if name is None else dt.timezone(offset, name)


def _encode_zoneinfo(value: zoneinfo.ZoneInfo) -> tuple[Any, Any] | None:
    return None if value.key is None else (value.key, None)  # None if it was made from a file


def _decode_namespace(plain: Any, _: Any) -> types.SimpleNamespace:
    return types.SimpleNamespace(**_typed(plain, dict))


def _encode_uninitialized(value: Any) -> tuple[Any, Any]:
    device = value.device  # the shape is not known yet
    return None, [value.requires_grad, str(device), str(value.dtype).removeprefix("torch.")]


def _decode_uninitialized(cls: type) -> Callable[[Any, Any], Any]:
    def decode(_: Any, details: Any) -> Any:
        requires_grad, device, name = details
        dtype = getattr(torch, name)
        return cls(requires_grad, device, _typed(dtype, torch.dtype))

    return decode


_INT = int
_OPTIONAL_INT = (int, type(None))
_OPTIONAL_ZONE = (dt.tzinfo, type(None))

CODECS: dict[type, Codec] = {
    range: _by_parts("range", lambda v: [v.start, v.stop, v.step], range, _INT, _INT, _INT),
    slice: _by_parts("slice", lambda v: [v.start, v.stop, v.step], slice, object, object, object),
    set: _by_list("set", set),
    frozenset: _by_list("frozenset", frozenset),
    type(...): Codec("ellipsis", lambda _: (None, None), lambda _, __: ...),
    collections.deque: Codec("deque", lambda v: (list(v), v.maxlen), _decode_deque),
    collections.defaultdict: Codec("defaultdict", _encode_defaultdict, _decode_defaultdict),
    dt.date: _by_parts("date", lambda v: [v.year, v.month, v.day], dt.date, *[_INT] * 3),
    dt.datetime: _by_parts(
        "datetime",
        lambda v: [
            *(v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond),
            *(v.fold, v.tzinfo),
        ],
        _decode_datetime,
        *[_INT] * 8,
        _OPTIONAL_ZONE,
    ),
    dt.time: _by_parts(
        "time",
        lambda v: [v.hour, v.minute, v.second, v.microsecond, v.fold, v.tzinfo],
        _decode_time,
        *[_INT] * 5,
        _OPTIONAL_ZONE,
    ),
    dt.timedelta: _by_parts(
        "timedelta", lambda v: [v.days, v.seconds, v.microseconds], dt.timedelta, *[_INT] * 3
    ),
    dt.timezone: Codec("timezone", _encode_timezone, _decode_timezone),
    zoneinfo.ZoneInfo: Codec(
        "zoneinfo", _encode_zoneinfo, lambda plain, _: zoneinfo.ZoneInfo(_typed(plain, str))
    ),
    decimal.Decimal: _by_string("decimal", decimal.Decimal),
    fractions.Fraction: _by_parts(
        "fraction", lambda v: [v.numerator, v.denominator], fractions.Fraction, _INT, _INT
    ),
    uuid.UUID: _by_string("uuid", uuid.UUID),
    pathlib.PosixPath: _by_string(
        "posix_path", pathlib.PosixPath if _IS_POSIX else pathlib.PurePosixPath
    ),
    pathlib.PurePosixPath: _by_string("pure_posix_path", pathlib.PurePosixPath),
    pathlib.WindowsPath: _by_string(
        "windows_path", pathlib.PureWindowsPath if _IS_POSIX else pathlib.WindowsPath
    ),
    pathlib.PureWindowsPath: _by_string("pure_windows_path", pathlib.PureWindowsPath),
    UninitializedParameter: Codec(
        "uninitialized_parameter",
        _encode_uninitialized,
        _decode_uninitialized(UninitializedParameter),
    ),
    UninitializedBuffer: Codec(
        "uninitialized_buffer", _encode_uninitialized, _decode_uninitialized(UninitializedBuffer)
    ),
    types.SimpleNamespace: Codec("namespace", lambda v: (dict(vars(v)), None), _decode_namespace),
}
DECODERS = {codec.kind: codec.decode for codec in CODECS.values()}
