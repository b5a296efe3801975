"""CKPT.yaml: plain scalars out, and nothing that runs code in.

SpeechBrain writes it with PyYAML's unsafe dumper, so that old ones hold tags for tuples and
NumPy scalars.  Those are decoded here from their bytes; every other Python tag is refused.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import torch
import yaml

from brain_ckpt._errors import CheckpointDamagedError, UnsafeCheckpointError

META_LIMIT_BYTES = 2**20

_HEADER = "# yamllint disable\n"
_NUMPY_SCALAR_TAGS = (
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)
# dtype strings of NumPy scalars, without the byte order, to struct's codes
_STRUCT_CODES = {
    "f2": "e", "f4": "f", "f8": "d", "b1": "?",
    "i1": "b", "i2": "h", "i4": "i", "i8": "q",
    "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
}  # fmt: skip
_PYTHON = "tag:yaml.org,2002:python/"


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
    load_meta(dump_meta({"unixtime": 0.0, **plain}), "meta")
    return plain


def dump_meta(meta: Mapping[str, Any]) -> bytes:
    """Return the content of CKPT.yaml for a plain meta."""
    return (_HEADER + yaml.safe_dump(dict(meta), allow_unicode=True)).encode()


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
    try:
        meta = yaml.load(content.decode(), Loader=_MetaLoader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointDamagedError(f"{where} has to be YAML, and is not: {error}") from error
    if not isinstance(meta, dict):
        raise CheckpointDamagedError(
            f"{where} has to hold a mapping, got {meta!r}; the file was cut or overwritten"
        )
    time = meta.get("unixtime")
    if isinstance(time, bool) or not isinstance(time, (int, float)) or not math.isfinite(time):
        raise CheckpointDamagedError(
            f"{where} has to hold the time of the save as a number, got unixtime={time!r}"
        )
    return meta


def load_plain_yaml(content: bytes, where: str) -> Any:
    """Read one of SpeechBrain's text formats, such as that of its Brain, safely."""
    try:
        return yaml.load(content.decode(), Loader=_MetaLoader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointDamagedError(
            f"{where} is neither a tensor file nor YAML: {error}"
        ) from error


class _MetaLoader(yaml.SafeLoader):
    """A SafeLoader that decodes two kinds of Python tags and names the others."""


def _tuple(loader: _MetaLoader, node: yaml.Node) -> tuple[Any, ...]:
    assert isinstance(node, yaml.SequenceNode)
    return tuple(loader.construct_sequence(node, deep=True))


def _numpy_scalar(loader: _MetaLoader, suffix: str, node: yaml.Node) -> Any:
    # !!python/object/apply:numpy...scalar [dtype, bytes]; the dtype is an anchored object itself
    if suffix not in _NUMPY_SCALAR_TAGS or not isinstance(node, yaml.SequenceNode):
        _refuse(loader, suffix, node)
    arguments = node.value
    if len(arguments) != 2 or not isinstance(arguments[1], yaml.ScalarNode):  # noqa: PLR2004
        _refuse(loader, suffix, node)
    code, order = _dtype(arguments[0])
    data = loader.construct_yaml_binary(arguments[1])
    if code not in _STRUCT_CODES:
        _refuse(loader, suffix, node)
    try:
        return struct.unpack((">" if order == ">" else "<") + _STRUCT_CODES[code], data)[0]
    except struct.error:
        _refuse(loader, suffix, node)


def _dtype(node: yaml.Node) -> tuple[str, str]:
    """Read code and byte order of a pickled dtype, ``{args: [f8, …], state: [3, <, …]}``."""
    code, order = "", "<"
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            children = value.value if isinstance(value, yaml.SequenceNode) else []
            scalars = [child.value for child in children if isinstance(child, yaml.ScalarNode)]
            if key.value == "args" and scalars:
                code = scalars[0]
            elif key.value == "state" and len(scalars) > 1:
                order = scalars[1]
    return code, order


def _refuse(loader: _MetaLoader, suffix: str, node: yaml.Node) -> Any:
    del loader
    tag = node.tag.replace(_PYTHON, "!!python/")
    raise UnsafeCheckpointError(
        f"a meta file holds plain values, got the Python tag {tag!r} (line "
        f"{node.start_mark.line + 1}{f', {suffix}' if suffix else ''}), which would run code; "
        f"if you trust the file, replace that value by a plain one"
    )


_MetaLoader.add_constructor(_PYTHON + "tuple", _tuple)
_MetaLoader.add_multi_constructor(_PYTHON + "object/apply:", _numpy_scalar)
_MetaLoader.add_multi_constructor(_PYTHON, _refuse)


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
