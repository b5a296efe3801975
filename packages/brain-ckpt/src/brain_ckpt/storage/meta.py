"""CKPT.yaml: written with plain values, read without running code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import torch

from brain_ckpt.errors import CheckpointDamagedError

META_LIMIT_BYTES = 2**20

_HEADER = "# yamllint disable\n"


def plain_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of meta with every value as a plain Python value.

    Parameters
    ----------
    meta : mapping of str
        Numbers, strings, booleans, None, tensors and NumPy values of one element, and lists,
        tuples and mappings of those.

    Returns
    -------
    dict
        The values as str, int, float, bool, None, list and dict.

    Raises
    ------
    TypeError
        If a value cannot be written as a plain value; the text says where it is.
    """
    if not isinstance(meta, Mapping):
        raise TypeError(
            f"meta must be a mapping from names to plain values, got {meta!r}; "
            f'write for example {{"loss": 0.5}}'
        )
    plain = {str(key): _plain(value, str(key)) for key, value in meta.items()}
    # A time given by the caller must be valid, or the checkpoint could not be listed.
    _check_time({"unixtime": 0.0, **plain}, "meta")
    dump_meta(plain)
    return plain


def dump_meta(meta: Mapping[str, Any]) -> bytes:
    """Return the content of CKPT.yaml for a plain meta."""
    from brain_ckpt.storage.safe_yaml import dump

    return (_HEADER + dump(dict(meta))).encode()


def load_meta(content: bytes, where: str) -> dict[str, Any]:
    """Parse a CKPT.yaml without running code; `where` is its path, for the errors.

    Raises
    ------
    UnsafeCheckpointError
        If it has a Python tag other than those of tuples and NumPy scalars.
    CheckpointDamagedError
        If it is not YAML, is not a mapping, or has no time.
    """
    meta = _load(content, f"{where} must be YAML")
    if not isinstance(meta, dict):
        raise CheckpointDamagedError(
            f"{where} must hold a mapping, got {meta!r}; the file was truncated or overwritten"
        )
    _check_time(meta, where)
    return meta


def load_plain_yaml(content: bytes, where: str) -> Any:
    """Parse one of SpeechBrain's text formats, such as that of its Brain, without running code."""
    return _load(content, f"{where} must be a tensor file or YAML")


def _check_time(meta: Mapping[str, Any], where: str) -> None:
    time = meta.get("unixtime")
    if isinstance(time, bool) or not isinstance(time, (int, float)) or not math.isfinite(time):
        raise CheckpointDamagedError(
            f"{where} must hold the time of the save as a number, got unixtime={time!r}"
        )


def _load(content: bytes, requirement: str) -> Any:
    # Importing PyYAML takes longer than importing this package.
    from brain_ckpt.storage.safe_yaml import NotYAMLError, load

    try:
        return load(content)
    except NotYAMLError as error:
        raise CheckpointDamagedError(f"{requirement}, got: {error}") from error


def _plain(value: Any, where: str) -> Any:  # noqa: PLR0911 - one return per type
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, torch.Tensor) or type(value).__module__ == "numpy":
        return _item(value, where)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping):
        return {
            key if isinstance(key, (int, bool)) else str(key): _plain(inner, f"{where}.{key}")
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(inner, f"{where}[{number}]") for number, inner in enumerate(value)]
    raise _not_plain(value, where)


def _item(value: Any, where: str) -> Any:
    try:
        item = value.item()
    except (RuntimeError, ValueError):
        raise _not_plain(value, where) from None
    if isinstance(item, (bool, int, float, str)):
        return item
    raise _not_plain(value, where)


def _not_plain(value: Any, where: str) -> TypeError:
    return TypeError(
        f"meta may hold plain values (numbers, strings, booleans, None), got {value!r} of type "
        f"{type(value).__name__} at meta[{where!r}]; convert it, for example with float(...) or "
        f"str(...), or save it as a recoverable"
    )
