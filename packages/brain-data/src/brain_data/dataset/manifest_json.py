"""Manifests in JSON files, with errors that name the row."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from brain_data.dataset.json_scanner import WORD_BYTES, find_rows
from brain_data.dataset.packed_rows import PACK_BYTES, PackedRows
from brain_data.dataset.replacements import format_row
from brain_data.dataset.row_store import reserved_id_error
from brain_data.errors import ManifestError, check_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from brain_data.dataset.row_store import Bytes, Positions

    Path = str | os.PathLike[str]


class DuplicateKeyError(ValueError):
    """Raised if a key occurs twice in one mapping."""


def load_data_json(
    json_path: Path, replacements: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Read a JSON manifest: a mapping from the ID of a row to a mapping with its items.

    Parameters
    ----------
    json_path : path
    replacements : mapping, optional
        Every string, at any depth, is formatted with these: ``"{data_folder}/a.wav"``. As in
        SpeechBrain, braces that are part of the text are doubled in the file.

    Raises
    ------
    FileNotFoundError
        If there is no such file; the message has its full path.
    ManifestError
        If it is no such mapping, an ID is not unique, or a replacement is missing; the message
        names the file and the row.
    """
    check_file(json_path, "JSON manifest")
    with open(json_path, encoding="utf-8-sig") as file:
        text = file.read()
    data = _parse_rows(text, json_path)
    values = {} if replacements is None else replacements
    return {uid: format_row(uid, row, values, json_path) for uid, row in data.items()}


def load_json_rows(
    json_path: Path, replacements: Mapping[str, Any] | None = None
) -> Mapping[str, Mapping[str, Any]]:
    """Return the rows of a JSON manifest: dicts if it is small, packed rows if it is large.

    A large file is scanned once for the start and the end of its rows, and for duplicate IDs; a row
    is parsed when it is accessed. A file that does not look like a mapping of mappings is parsed
    with the standard library, which reports what is wrong with it.
    """
    check_file(json_path, "JSON manifest")
    size = os.stat(json_path).st_size
    if size >= PACK_BYTES:
        # buffer: the file and one word of zeros, so that the words of the last ID can be read
        buffer = np.empty(size + WORD_BYTES, np.uint8)
        buffer[size:] = 0
        with open(json_path, "rb") as file:
            read = file.readinto(buffer[:size].data)
        spans = find_rows(buffer, size) if read == size else None
        if spans is not None:
            starts, ends, has_braces = spans
            # Without a brace in any string nothing is replaced.
            values = (replacements or {}) if has_braces else None
            return JsonRows(buffer, starts, ends, json_path, values)
    return load_data_json(json_path, replacements)


class JsonRows(PackedRows):
    """Rows as the bytes of a JSON file, ``"uid": {...}``, each parsed when it is accessed.

    Parameters
    ----------
    replacements : mapping or None
        Replacements in strings; None if no string of the file has a brace.
    """

    def __init__(
        self,
        buffer: Bytes,
        starts: Positions,
        ends: Positions,
        source: object,
        replacements: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(buffer, starts, ends, source)
        self._replacements = replacements

    def id_at(self, index: int) -> str:
        """Return the ID of the row at `index`."""
        return str(_parse(str(self.bytes_at(index), "utf-8"))[0])

    def row_at(self, index: int) -> dict[str, Any]:
        """Parse and return the row at `index`, with its ID."""
        text = str(self.bytes_at(index), "utf-8")
        uid, end = _parse(text)
        try:
            row, end = _parse(text, text.index("{", end))
        except DuplicateKeyError as error:
            raise ManifestError(
                f"Each key of a row must be unique; row {uid!r} of {self.source} has "
                f"{error.args[0]!r} twice: rename or remove one of them."
            ) from None
        except ValueError as error:
            raise ManifestError(
                f"Each row of a JSON manifest must be valid JSON; row {uid!r} of {self.source} is "
                f"not ({error}): {text[:200]!r}. Correct it there."
            ) from error
        assert end == len(text)
        if self._replacements is not None:
            row = format_row(uid, row, self._replacements, self.source)
        if "id" in row:
            raise reserved_id_error(uid, row, self.source)
        row["id"] = uid
        return row  # type: ignore[no-any-return]  # the text begins with a brace


def _parse_rows(text: str, source: object) -> dict[str, dict[str, Any]]:
    """Parse a whole JSON manifest; raise ManifestError unless it maps unique IDs to mappings."""
    try:
        data = json.loads(text, object_pairs_hook=_unique_keys)
    except DuplicateKeyError as error:
        raise ManifestError(
            f"Each ID or key of a JSON manifest must be unique; {source} has {error.args[0]!r} "
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
        _check_is_mapping(uid, row, source)
    return data


def _check_is_mapping(uid: str, row: object, source: object) -> None:
    """Raise ManifestError for a row that is not a mapping."""
    if not isinstance(row, dict):
        raise ManifestError(
            f"Each row of a manifest must be a mapping from key to value; row {uid!r} of {source} "
            f"is {str(row)[:80]} (of type {type(row).__name__}): write {{'key': value}} there."
        )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object as a dict; raise if a key is not unique."""
    data = dict(pairs)
    if len(data) != len(pairs):
        keys = [key for key, _ in pairs]
        raise DuplicateKeyError(next(key for key in keys if keys.count(key) > 1))
    return data


_parse = json.JSONDecoder(object_pairs_hook=_unique_keys).raw_decode
