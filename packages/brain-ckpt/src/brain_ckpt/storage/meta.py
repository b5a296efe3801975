"""CKPT.yaml: plain scalars out, and nothing that runs code in."""

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
    """Return meta with every value as plain Python; a caller's mapping is not edited.

    Parameters
    ----------
    meta : mapping of str
        Numbers, strings, booleans, None, tensors and NumPy values of one element; lists, tuples
        and mappings of those.

    Returns
    -------
    dict
        The same as str, int, float, bool, None, list and dict.

    Raises
    ------
    TypeError
        If a value cannot be written as plain scalars; the text says where it is.
    """
    if not isinstance(meta, Mapping):
        raise TypeError(
            f"meta is a mapping from names to plain values, got {meta!r}; "
            f'write for example {{"loss": 0.5}}'
        )
    plain = {str(key): _plain(value, str(key)) for key, value in meta.items()}
    # What is written has to be listed again: a time of the caller's own has to be one.
    _check_time({"unixtime": 0.0, **plain}, "meta")
    dump_meta(plain)
    return plain


def dump_meta(meta: Mapping[str, Any]) -> bytes:
    """Return the content of CKPT.yaml for a plain meta."""
    from brain_ckpt.storage.safe_yaml import dump

    return (_HEADER + dump(dict(meta))).encode()


def load_meta(content: bytes, where: str) -> dict[str, Any]:
    """Read the content of a CKPT.yaml without running anything it asks for.

    Parameters
    ----------
    content : bytes
        The file.
    where : str
        Its path, for the errors.

    Raises
    ------
    UnsafeCheckpointError
        If there is a Python tag other than those for tuples and NumPy scalars.
    CheckpointDamagedError
        If it is not YAML, not a mapping, or lacks its time.
    """
    meta = _load(content, f"{where} has to be YAML, and is not")
    if not isinstance(meta, dict):
        raise CheckpointDamagedError(
            f"{where} has to hold a mapping, got {meta!r}; the file was cut or overwritten"
        )
    _check_time(meta, where)
    return meta


def load_plain_yaml(content: bytes, where: str) -> Any:
    """Read one of SpeechBrain's text formats, such as that of its Brain, safely."""
    return _load(content, f"{where} is neither a tensor file nor YAML")


def _check_time(meta: Mapping[str, Any], where: str) -> None:
    time = meta.get("unixtime")
    if isinstance(time, bool) or not isinstance(time, (int, float)) or not math.isfinite(time):
        raise CheckpointDamagedError(
            f"{where} has to hold the time of the save as a number, got unixtime={time!r}"
        )


def _load(content: bytes, complaint: str) -> Any:
    # PyYAML takes longer to import than the rest of this package: only where a file is read.
    from brain_ckpt.storage.safe_yaml import NotYAMLError, load

    try:
        return load(content)
    except NotYAMLError as error:
        raise CheckpointDamagedError(f"{complaint}: {error}") from error


def _plain(value: Any, where: str) -> Any:  # noqa: PLR0911 - one line a kind
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
        f"meta holds plain scalars (numbers, strings, booleans, None), got {value!r} of type "
        f"{type(value).__name__} at meta[{where!r}]; convert it, for example with float(...) or "
        f"str(...), or save it as a recoverable"
    )
