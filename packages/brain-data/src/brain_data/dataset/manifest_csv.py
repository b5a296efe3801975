"""Manifests in CSV files, with errors that name the line."""

from __future__ import annotations

import csv
import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from brain_data.dataset.packed_rows import PACK_BYTES, MarshalledRows
from brain_data.dataset.replacements import missing_replacement_error
from brain_data.errors import ManifestError, ManifestKeyError, check_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Path = str | os.PathLike[str]

_SURROGATE = re.compile("[\udc80-\udcff]")
_VARIABLE = re.compile(r"\$([\w.]+)")


def load_data_csv(
    csv_path: Path, replacements: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Read a CSV manifest: a header with an ``ID`` column, then one row a line.

    Every value is a string, except the column ``duration``, which is a float (seconds).

    Parameters
    ----------
    csv_path : path
    replacements : mapping, optional
        Values for ``$name`` in any field: ``$data_folder/a.wav``.

    Raises
    ------
    FileNotFoundError
        If there is no such file; the message has its full path.
    ManifestError
        If a column, a field or a replacement is missing, an ID is empty or not unique, a duration
        is not a number, a field exceeds `csv.field_size_limit`, or the file is not UTF-8; the
        message names the file and the line.
    """
    check_file(csv_path, "CSV manifest")
    return dict(read_csv_rows(csv_path, replacements))


def load_csv_rows(
    csv_path: Path, replacements: Mapping[str, Any] | None = None
) -> Mapping[str, Mapping[str, Any]]:
    """Return the rows of a CSV manifest: dicts if it is small, packed rows if it is large."""
    check_file(csv_path, "CSV manifest")
    rows = read_csv_rows(csv_path, replacements)
    if os.stat(csv_path).st_size < PACK_BYTES:
        return dict(rows)
    return MarshalledRows(rows, csv_path)


def read_csv_rows(
    csv_path: Path, replacements: Mapping[str, Any] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the ID and the validated row of each line, without a dict of all rows."""
    try:
        yield from _checked_rows(csv_path, {} if replacements is None else replacements)
    except (UnicodeDecodeError, csv.Error) as error:
        raise _unreadable_error(error, csv_path) from error


def _checked_rows(
    csv_path: Path, values: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    seen: set[str] = set()
    substitute = _VARIABLE.sub

    def value_of(match: re.Match[str]) -> str:
        return str(values[match[1]])

    with open(csv_path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, skipinitialspace=True)
        header = _checked_header(next(reader, []), csv_path)
        uid_column = header.index("ID")
        names = header[:uid_column] + header[uid_column + 1 :]
        has_duration = "duration" in names
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                line = reader.line_num
                raise ManifestError(
                    _wrong_width_message(csv_path, line, header, fields, uid_column)
                )
            uid = fields.pop(uid_column)
            if uid in seen or not uid:
                raise ManifestError(_uid_message(csv_path, reader.line_num, uid, uid_column))
            seen.add(uid)
            row: dict[str, Any] = dict(zip(names, fields))  # noqa: B905 - checked above
            try:
                if "$" in "".join(fields):
                    row = {k: substitute(value_of, v) if "$" in v else v for k, v in row.items()}
                if has_duration:
                    row["duration"] = float(row["duration"])
            except (KeyError, ValueError) as error:
                where = f"{csv_path}, line {reader.line_num} (ID {uid!r}"
                raise _invalid_value_error(error, row, values, where) from None
            yield uid, row


def _checked_header(header: list[str], source: object) -> list[str]:
    if "ID" not in header:
        raise ManifestKeyError(
            f"A CSV manifest must have a column 'ID' that names each row; the header of {source} "
            f"is {header!r}: add it, or rename the column that holds the names."
        )
    if len(set(header)) != len(header):
        raise ManifestError(
            f"Each column of a CSV manifest must have its own name; the header of {source} is "
            f"{header!r}: rename one of the two."
        )
    return header


def _wrong_width_message(
    source: object, line: int, header: list[str], fields: list[str], uid_column: int
) -> str:
    uid = f" (ID {fields[uid_column]!r})" if len(fields) > uid_column else ""
    difference = (
        f"it lacks {header[len(fields) :]!r}"
        if len(fields) < len(header)
        else f"too many by {fields[len(header) :]!r}; a value with a comma needs quotes"
    )
    return (
        f"Each line of a CSV manifest must have the {len(header)} fields of its header; {source}, "
        f"line {line}{uid} has {len(fields)}: {difference}."
    )


def _unreadable_error(error: UnicodeDecodeError | csv.Error, source: Path) -> ManifestError:
    """Return an error that names the line, which is read again: a file is decoded in blocks."""
    if isinstance(error, UnicodeDecodeError):
        line, byte = _first_line_not_utf8(source)
        return ManifestError(
            f"A CSV manifest must be in UTF-8; {source}, line {line} has the byte 0x{byte:02x} in "
            "another encoding: convert the file, for example by iconv -f latin1 -t utf-8."
        )
    line = 1
    with open(source, newline="", encoding="utf-8-sig") as file, suppress(csv.Error):
        reader = csv.reader(file, skipinitialspace=True)
        for _ in reader:
            line = reader.line_num + 1
    if "field limit" not in str(error):
        return ManifestError(f"{source}, line {line} must be a line of CSV; got: {error}.")
    return ManifestError(
        f"A field of a CSV manifest must have at most {csv.field_size_limit()} characters; "
        f"{source}, line {line} has a longer one: close its quotation mark, or call "
        "csv.field_size_limit(...) first."
    )


def _first_line_not_utf8(source: Path) -> tuple[int, int]:
    """Return the number of the first line that is not UTF-8, and its first wrong byte."""
    with open(source, "rb") as file:
        for number, text in enumerate(file, 1):
            # A wrong byte becomes a lone surrogate, 0xDC00 above it.
            decoded = text.decode("utf-8", "surrogateescape")
            if wrong := _SURROGATE.search(decoded):
                return number, ord(wrong[0]) - 0xDC00
    raise AssertionError(source)  # reading the file has failed


def _uid_message(source: Path, line: int, uid: str, uid_column: int) -> str:
    if not uid:
        return (
            f"Each row of a CSV manifest must have an ID; it is empty in {source}, line {line}: "
            "give the row one, or remove the line."
        )
    with open(source, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, skipinitialspace=True)
        first = next(reader.line_num for fields in reader if fields and fields[uid_column] == uid)
    return (
        f"Each ID of a CSV manifest must be unique; {source}, line {line} has {uid!r}, and so "
        f"has line {first}: rename or remove one of them."
    )


def _invalid_value_error(
    error: KeyError | ValueError,
    row: Mapping[str, str],
    replacements: Mapping[str, Any],
    where: str,
) -> ManifestError:
    if isinstance(error, KeyError):
        column, value = next(
            (column, value)
            for column, value in row.items()
            if any(name not in replacements for name in _VARIABLE.findall(value))
        )
        return missing_replacement_error(error, value, replacements, f"{where}, column {column!r})")
    return ManifestError(
        f"The column 'duration' must hold seconds as a number; {where}) has {row['duration']!r}: "
        "correct it, or rename the column."
    )
