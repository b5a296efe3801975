"""Plain values as YAML without a YAML library: the same text, in a hundredth of the time.

PyYAML in pure Python takes most of the time of a small save, and of listing checkpoints.  Both
functions return None for whatever they do not know; a YAML library then decides.
"""

from __future__ import annotations

import math
import re
from typing import Any

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,99}")
_LINE = re.compile(rf"({_KEY.pattern}): (\S+)")
_INT = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"-?[0-9]{1,40}\.[0-9]{1,40}(?:e[-+][0-9]{1,4})?")
# What YAML 1.1 reads as a boolean or as nothing, in any case of letters.
_NOT_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
_CONSTANTS: dict[str, Any] = {
    "true": True,
    "false": False,
    "null": None,
    ".inf": math.inf,
    "-.inf": -math.inf,
    ".nan": math.nan,
}


def dump_plain(meta: dict[str, Any]) -> str | None:
    """Return numbers, booleans, None, words, and lists and mappings of these as YAML."""
    lines = _lines(meta)
    return None if lines is None or not meta else "\n".join(lines) + "\n"


def load_plain(text: str) -> dict[str, Any] | None:
    """Parse lines of ``key: value``, each value a number, a boolean, None or a word."""
    meta: dict[str, Any] = {}
    for line in text.removesuffix("\n").split("\n"):
        if line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None or not _is_word(found[1]):
            return None
        key, value = found.groups()
        if _INT.fullmatch(value):
            meta[key] = int(value)
        elif _FLOAT.fullmatch(value):
            meta[key] = float(value)
        elif value in _CONSTANTS:
            meta[key] = _CONSTANTS[value]
        elif _WORD.fullmatch(value) and _is_word(value):
            meta[key] = value
        else:
            return None
    return meta or None


def _lines(value: Any) -> list[str] | None:
    """Return a value as lines without the indentation of what it is in."""
    if isinstance(value, dict):
        return _mapping_lines(value) if value else ["{}"]
    if isinstance(value, list):
        return _list_lines(value) if value else ["[]"]
    text = _scalar(value)
    return None if text is None else [text]


def _mapping_lines(mapping: dict[Any, Any]) -> list[str] | None:
    if not all(type(key) is str and _KEY.fullmatch(key) and _is_word(key) for key in mapping):
        return None
    out: list[str] = []
    for key in sorted(mapping):
        value = mapping[key]
        lines = _lines(value)
        if lines is None:
            return None
        if not value or not isinstance(value, (dict, list)):
            out.append(f"{key}: {lines[0]}")
            continue
        out.append(f"{key}:")
        # A list in a mapping is not indented.
        out.extend(lines if isinstance(value, list) else [f"  {line}" for line in lines])
    return out


def _list_lines(values: list[Any]) -> list[str] | None:
    out: list[str] = []
    for value in values:
        lines = _lines(value)
        if lines is None:
            return None
        out.append(f"- {lines[0]}")
        out.extend(f"  {line}" for line in lines[1:])
    return out


def _scalar(value: Any) -> str | None:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if type(value) is int:
        return str(value)
    if type(value) is float:
        return _float(value)
    if type(value) is str and _WORD.fullmatch(value) and _is_word(value):
        return value
    return None


def _float(value: float) -> str:
    if math.isnan(value):
        return ".nan"
    if math.isinf(value):
        return ".inf" if value > 0 else "-.inf"
    text = repr(value)
    # 1e+17 would be a string in YAML 1.1.
    return text if "." in text else text.replace("e", ".0e", 1)


def _is_word(text: str) -> bool:
    """Return whether a plain text is a string in YAML 1.1, neither a boolean nor nothing."""
    return text.lower() not in _NOT_WORDS
