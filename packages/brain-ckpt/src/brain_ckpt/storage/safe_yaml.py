"""YAML that is read without running code.

SpeechBrain writes its files with PyYAML's unsafe dumper, so they can hold tags for tuples and NumPy
scalars.  These are decoded from their bytes; any other Python tag is an error.
"""

from __future__ import annotations

import struct
from typing import Any

import yaml

from brain_ckpt.errors import UnsafeCheckpointError

_NUMPY_SCALAR_TAGS = (
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)
# From dtypes of NumPy scalars, without byte order, to format characters of struct.
_STRUCT_CODES = {
    "f2": "e", "f4": "f", "f8": "d", "b1": "?",
    "i1": "b", "i2": "h", "i4": "i", "i8": "q",
    "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
}  # fmt: skip
_PYTHON = "tag:yaml.org,2002:python/"


class NotYAMLError(ValueError):
    """A text is not valid YAML."""


def dump(value: Any) -> str:
    """Return plain values as YAML."""
    return yaml.safe_dump(value, allow_unicode=True)


def load(content: bytes) -> Any:
    """Parse YAML.

    Raises
    ------
    UnsafeCheckpointError
        If it has a Python tag other than those of tuples and NumPy scalars.
    NotYAMLError
        If it cannot be parsed.
    """
    try:
        return yaml.load(content.decode(), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise NotYAMLError(str(error)) from error


class _Loader(yaml.SafeLoader):
    """A SafeLoader that decodes tuples and NumPy scalars and raises for other Python tags."""


def _tuple(loader: _Loader, node: yaml.Node) -> tuple[Any, ...]:
    assert isinstance(node, yaml.SequenceNode)
    return tuple(loader.construct_sequence(node, deep=True))


def _numpy_scalar(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    # !!python/object/apply:numpy...scalar [dtype, bytes]; the dtype is an object with a tag, too
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
    """Return type code and byte order of a dtype, ``{args: [f8, …], state: [3, <, …]}``."""
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


def _refuse(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    del loader
    tag = node.tag.replace(_PYTHON, "!!python/")
    raise UnsafeCheckpointError(
        f"a meta file may hold plain values only, got the Python tag {tag!r} (line "
        f"{node.start_mark.line + 1}{f', {suffix}' if suffix else ''}), which would run code; "
        f"if you trust the file, replace the value with a plain one"
    )


_Loader.add_constructor(_PYTHON + "tuple", _tuple)
_Loader.add_multi_constructor(_PYTHON + "object/apply:", _numpy_scalar)
_Loader.add_multi_constructor(_PYTHON, _refuse)
