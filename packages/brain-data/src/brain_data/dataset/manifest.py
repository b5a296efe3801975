"""Manifests in JSON and CSV files, with errors that say where in the file."""

from __future__ import annotations

import csv
import json
import re
from typing import TYPE_CHECKING, Any

from brain_data.errors import ManifestError, ManifestKeyError, nearest

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    Path = str | os.PathLike[str]


class DuplicateKeyError(ValueError):
    """A key that comes twice in one mapping."""


_VARIABLE = re.compile(r"\$([\w.]+)")


def load_data_json(
    json_path: Path, replacements: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Read a JSON manifest: a mapping from the ID of a row to a mapping with its items.

    Parameters
    ----------
    json_path : path
    replacements : mapping, optional
        Every string, at any depth, is formatted with these: ``"{data_folder}/a.wav"``. As in
        SpeechBrain, braces that are meant as such are doubled in the file.

    Raises
    ------
    ManifestError
        When it is no such mapping, an ID comes twice, or a replacement is missing; names the
        file and the row.
    """
    with open(json_path, encoding="utf-8-sig") as file:
        text = file.read()
    data = parse_json_rows(text, json_path)
    given = {} if replacements is None else replacements
    return {uid: format_row(uid, row, given, json_path) for uid, row in data.items()}


def load_data_csv(
    csv_path: Path, replacements: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Read a CSV manifest: a header with an ``ID`` column, then one row a line.

    Every value is a string, but for the column ``duration``, which is a float (seconds).

    Parameters
    ----------
    csv_path : path
    replacements : mapping, optional
        Values for ``$name`` in any field: ``$data_folder/a.wav``.

    Raises
    ------
    ManifestError
        When a column or field is missing, an ID comes twice, a duration is no number, or a
        replacement is missing; names the file and the line.
    """
    return dict(read_csv_rows(csv_path, replacements))


def read_csv_rows(
    csv_path: Path, replacements: Mapping[str, Any] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ID and row, checked; for as many rows as do not fit into a dict."""
    given = {} if replacements is None else replacements
    seen: set[str] = set()
    put_in = _VARIABLE.sub

    def fill(match: re.Match[str]) -> str:
        return str(given[match[1]])

    with open(csv_path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, skipinitialspace=True)
        header = _csv_header(next(reader, []), csv_path)
        uid_column = header.index("ID")
        names = header[:uid_column] + header[uid_column + 1 :]
        has_duration = "duration" in names
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                line = reader.line_num
                raise ManifestError(_wrong_width(csv_path, line, header, fields, uid_column))
            uid = fields.pop(uid_column)
            if uid in seen:
                raise ManifestError(_comes_twice(csv_path, reader.line_num, uid, uid_column))
            seen.add(uid)
            row: dict[str, Any] = dict(zip(names, fields))  # noqa: B905 - asked above
            try:
                if "$" in "".join(fields):
                    row = {k: put_in(fill, v) if "$" in v else v for k, v in row.items()}
                if has_duration:
                    row["duration"] = float(row["duration"])
            except (KeyError, ValueError) as error:
                where = f"{csv_path}, line {reader.line_num} (ID {uid!r}"
                raise _unreadable(error, row, given, where) from None
            yield uid, row


def parse_json_rows(text: str, source: object) -> dict[str, dict[str, Any]]:
    """Parse a whole JSON manifest, and check that it is a mapping of mappings, each ID once."""
    try:
        data = json.loads(text, object_pairs_hook=unique_keys)
    except DuplicateKeyError as error:
        raise ManifestError(
            f"Each ID or key of a JSON manifest must be there once; {source} has {error.args[0]!r} "
            "twice in one mapping: rename or remove one of them."
        ) from None
    except json.JSONDecodeError as error:
        raise ManifestError(
            f"A JSON manifest must be valid JSON; {source} is not: {error}. Correct the file there."
        ) from error
    if not isinstance(data, dict):
        raise ManifestError(
            f"A JSON manifest must be a mapping from the ID of a row to its items; {source} holds "
            f"a {type(data).__name__}: write {{'row1': {{...}}, 'row2': {{...}}}}."
        )
    for uid, row in data.items():
        check_is_row(uid, row, source)
    return data


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of the pairs that a JSON parser has found, and refuse a key that comes twice."""
    data = dict(pairs)
    if len(data) != len(pairs):
        keys = [key for key, _ in pairs]
        raise DuplicateKeyError(next(key for key in keys if keys.count(key) > 1))
    return data


def check_is_row(uid: str, row: object, source: object) -> None:
    """Refuse a row that is no mapping."""
    if not isinstance(row, dict):
        raise ManifestError(
            f"Each row of a manifest must be a mapping from key to value; row {uid!r} of {source} "
            f"is {str(row)[:80]} (of type {type(row).__name__}): write {{'key': value}} there."
        )


def format_row(
    uid: str, row: dict[str, Any], given: Mapping[str, Any], source: object
) -> dict[str, Any]:
    """Put `given` in for the names in braces, in every string of the row."""
    for key, value in row.items():
        if isinstance(value, (str, dict, list)):
            try:
                row[key] = _formatted(value, given)
            except (KeyError, IndexError) as error:
                where = f"row {uid!r} of {source}, key {key!r}"
                raise _missing_replacement(error, value, given, where) from None
            except (ValueError, AttributeError) as error:
                raise ManifestError(
                    "Braces in a JSON manifest are for replacements; row "
                    f"{uid!r} of {source}, key {key!r} has {value!r} ({error}): double the braces "
                    "that are meant as such."
                ) from error
    return row


def _formatted(value: Any, given: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        return value.format_map(given) if "{" in value or "}" in value else value
    if isinstance(value, dict):
        return {key: _formatted(one, given) for key, one in value.items()}
    if isinstance(value, list):
        return [_formatted(one, given) for one in value]
    return value


def _csv_header(header: list[str], source: object) -> list[str]:
    if "ID" not in header:
        raise ManifestKeyError(
            f"A CSV manifest must have a column 'ID' with a name for each row; the header of "
            f"{source} is {header!r}: add it, or rename the one that holds the names."
        )
    if len(set(header)) != len(header):
        raise ManifestError(
            f"Each column of a CSV manifest must have its own name; the header of {source} is "
            f"{header!r}: rename one of the two."
        )
    return header


def _wrong_width(
    source: object, line: int, header: list[str], fields: list[str], uid_column: int
) -> str:
    uid = f" (ID {fields[uid_column]!r})" if len(fields) > uid_column else ""
    what = (
        f"it lacks {header[len(fields) :]!r}"
        if len(fields) < len(header)
        else f"too many by {fields[len(header) :]!r}; a value with a comma needs quotes"
    )
    return (
        f"Each line of a CSV manifest must have the {len(header)} fields of its header; {source}, "
        f"line {line}{uid} has {len(fields)}: {what}."
    )


def _comes_twice(source: Path, line: int, uid: str, uid_column: int) -> str:
    with open(source, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, skipinitialspace=True)
        first = next(reader.line_num for fields in reader if fields and fields[uid_column] == uid)
    return (
        f"Each ID of a CSV manifest must be there once; {source}, line {line} has {uid!r}, and so "
        f"has line {first}: rename or remove one of them."
    )


def _unreadable(
    error: KeyError | ValueError, row: Mapping[str, str], given: Mapping[str, Any], where: str
) -> ManifestError:
    if isinstance(error, KeyError):
        column, value = next(
            (column, value)
            for column, value in row.items()
            if any(name not in given for name in _VARIABLE.findall(value))
        )
        return _missing_replacement(error, value, given, f"{where}, column {column!r})")
    return ManifestError(
        f"The column 'duration' must hold seconds as a number; {where}) has {row['duration']!r}: "
        "correct it, or name the column otherwise."
    )


def _missing_replacement(
    error: LookupError, value: object, given: Mapping[str, Any], where: str
) -> ManifestKeyError:
    name = error.args[0] if isinstance(error, KeyError) and error.args else "a name"
    return ManifestKeyError(
        f"Each replacement that a manifest names must be given; {where} has {value!r}, which needs "
        f"{name!r}{nearest(name, given)}, and given are {sorted(map(str, given))!r}: pass "
        f"replacements={{{name!r}: ...}}."
    )
