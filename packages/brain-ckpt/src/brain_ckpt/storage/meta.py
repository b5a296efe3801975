"""CKPT.yaml: written with plain values, read without running code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import torch

from brain_ckpt.errors import CheckpointDamagedError
from brain_ckpt.storage.meta_arrays import copy_array, is_array, to_lists
from brain_ckpt.storage.plain_yaml import dump_plain, load_plain

META_LIMIT_BYTES = 2**20
_MAX_META_BYTES = META_LIMIT_BYTES - 2**12  # the save adds keys of its own

_HEADER = "# yamllint disable\n"


def plain_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of meta with plain Python values, tensors and arrays.

    Parameters
    ----------
    meta : mapping of str
        Numbers, strings, booleans, None, tensors, NumPy values, and lists, tuples and mappings of
        those.

    Returns
    -------
    dict
        The values as str, int, float, bool, None, list and dict.  A tensor or array of one
        element is a number; others are copied to the CPU.

    Raises
    ------
    TypeError
        If a value cannot be written to YAML; the text says where it is.
    ValueError
        If CKPT.yaml would be too large.
    """
    if not isinstance(meta, Mapping):
        raise TypeError(
            f"meta must be a mapping from names to plain values, got {meta!r}; "
            f'write for example {{"loss": 0.5}}'
        )
    plain = {str(key): _plain(value, str(key)) for key, value in meta.items()}
    # A time given by the caller must be valid, or the checkpoint could not be listed.
    _check_time({"unixtime": 0.0, **plain}, "meta")
    # Large values are refused before they are written as text, which can take seconds.
    size = _least_bytes(plain)
    if size <= _MAX_META_BYTES:
        size = len(dump_meta(plain)[0])
    if size > _MAX_META_BYTES:
        raise ValueError(
            f"meta must be at most {_MAX_META_BYTES} bytes as YAML, got at least {size}; save "
            f"large values as a recoverable"
        )
    return plain


def dump_meta(meta: Mapping[str, Any]) -> tuple[bytes, list[Any]]:
    """Return the content of CKPT.yaml, and the notes that restore its tensors and arrays."""
    lists, notes = to_lists(meta)
    text = dump_plain(lists)
    if text is None:
        from brain_ckpt.storage.safe_yaml import dump

        text = dump(lists)
    return (_HEADER + text).encode(), notes


def load_meta(content: bytes, where: str) -> dict[str, Any]:
    """Parse a CKPT.yaml without running code; `where` is its path, for the errors.

    Raises
    ------
    UnsafeCheckpointError
        If it has a Python tag other than those of tuples and NumPy scalars.
    CheckpointDamagedError
        If it is not YAML, is not a mapping, or has no time.
    """
    header = _HEADER.encode()
    # Only what this package, or SpeechBrain, writes begins so.
    meta = load_plain(content.decode("ascii", "replace")) if content.startswith(header) else None
    if meta is None:
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
        return _item_or_array(value, where)
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


def _item_or_array(value: Any, where: str) -> Any:
    try:
        item = value.item()
    except (RuntimeError, ValueError):  # it has not exactly one element
        item = copy_array(value)
    if isinstance(item, (bool, int, float, str, torch.Tensor)) or is_array(item):
        return item
    raise _not_plain(value, where)


def _least_bytes(value: Any) -> int:
    """Return a lower bound of the bytes of plain values as YAML."""
    if isinstance(value, Mapping):
        return sum(map(_least_bytes, value.values())) + 3 * len(value)
    if isinstance(value, list):
        return sum(map(_least_bytes, value)) + 3 * len(value)
    if isinstance(value, torch.Tensor):
        return 4 * value.numel()  # "- 0" and the end of the line
    return 4 * value.size if is_array(value) else 1


def _not_plain(value: Any, where: str) -> TypeError:
    return TypeError(
        f"meta may hold plain values (numbers, strings, booleans, None) and arrays of them, got "
        f"{value!r} of type {type(value).__name__} at meta[{where!r}]; convert it, for example "
        f"with float(...) or str(...), or save it as a recoverable"
    )
