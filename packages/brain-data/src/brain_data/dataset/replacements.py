"""Replacements in the strings of a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from brain_data.errors import ManifestError, ManifestKeyError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping


def format_row(
    uid: str, row: dict[str, Any], replacements: Mapping[str, Any], source: object
) -> dict[str, Any]:
    """Format every string of a row, at any depth, with the replacements; modifies the row."""
    for key, value in row.items():
        if isinstance(value, (str, dict, list)):
            try:
                row[key] = _formatted(value, replacements)
            except (KeyError, IndexError) as error:
                where = f"row {uid!r} of {source}, key {key!r}"
                raise missing_replacement_error(error, value, replacements, where) from None
            except (ValueError, AttributeError) as error:
                raise ManifestError(
                    "Braces in a JSON manifest are for replacements; row "
                    f"{uid!r} of {source}, key {key!r} has {value!r} ({error}): double the "
                    "braces that are part of the text."
                ) from error
    return row


def _formatted(value: Any, replacements: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        return value.format_map(replacements) if "{" in value or "}" in value else value
    if isinstance(value, dict):
        return {key: _formatted(item, replacements) for key, item in value.items()}
    if isinstance(value, list):
        return [_formatted(item, replacements) for item in value]
    return value


def missing_replacement_error(
    error: LookupError, value: object, replacements: Mapping[str, Any], where: str
) -> ManifestKeyError:
    """Return the error for a replacement that a manifest names and that is not given."""
    name = error.args[0] if isinstance(error, KeyError) and error.args else "a name"
    return ManifestKeyError(
        f"Each replacement that a manifest names must be given; {where} has {value!r}, which needs "
        f"{name!r}{nearest(name, replacements)}, given are {sorted(map(str, replacements))!r}: "
        f"pass replacements={{{name!r}: ...}}."
    )
