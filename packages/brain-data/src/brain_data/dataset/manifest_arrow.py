"""Rows of an Arrow table, of a Hugging Face dataset, or of Parquet files."""

from __future__ import annotations

import bisect
import os
from typing import TYPE_CHECKING, Any

from brain_data.dataset.manifest import format_row
from brain_data.dataset.rows import RowStore, missing_row
from brain_data.errors import ManifestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Replacements = Mapping[str, Any] | None


class _NumberedRows(RowStore):
    """Rows whose IDs are their positions."""

    def __init__(self, length: int, keys: list[str], source: object, given: Replacements) -> None:
        if "id" in keys:
            raise ManifestError(
                f"The key 'id' is for the position of a row; the table has such a column among "
                f"{keys!r}: rename it (rename_column, or rename_columns for pyarrow)."
            )
        self.source = source
        self._keys = keys
        self._length = length
        self._given = given

    def __len__(self) -> int:
        """Count the rows."""
        return self._length

    def item_keys(self) -> list[str]:
        """List the columns, without reading a row, and ``"id"``."""
        return [*self._keys, "id"]

    def id_at(self, index: int) -> int:
        """Return the position itself."""
        return index

    def find(self, uid: Any) -> int:
        """Return the position itself, if there is such a row."""
        if type(uid) is not int or not 0 <= uid < self._length:
            raise missing_row(uid, self.source)
        return uid

    def row_at(self, index: int) -> dict[str, Any]:
        """Read the row at `index`."""
        row = self._read(index)
        if self._given:
            row = format_row(str(index), row, self._given, self.source)
        row["id"] = index
        return row

    def _read(self, index: int) -> dict[str, Any]:
        raise NotImplementedError


class IndexedRows(_NumberedRows):
    """Rows of whatever gives a mapping for a position: a Hugging Face dataset."""

    def __init__(self, dataset: Any, given: Replacements = None) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise ManifestError(
                "from_arrow_dataset needs a dataset with a length and rows by position, a "
                f"pyarrow.Table or a Parquet file; got {type(dataset).__name__}: load it without "
                "streaming, for instance."
            )
        # The columns by name, where they are known: reading a row may decode audio.
        names = getattr(dataset, "column_names", None)
        keys = list(names) if isinstance(names, list) else list(dataset[0]) if len(dataset) else []
        super().__init__(len(dataset), keys, None, given)
        self._dataset = dataset

    def _read(self, index: int) -> dict[str, Any]:
        return dict(self._dataset[index])


class TableRows(_NumberedRows):
    """Rows of a ``pyarrow.Table``, whose memory forked workers share."""

    def __init__(self, table: Any, source: object = None, given: Replacements = None) -> None:
        super().__init__(table.num_rows, list(table.column_names), source, given)
        self._table = table
        self._batches, self._starts = _batches_of(table)

    def _read(self, index: int) -> dict[str, Any]:
        which = bisect.bisect_right(self._starts, index) - 1
        place = index - self._starts[which]
        columns = self._batches[which]
        return {key: column[place].as_py() for key, column in zip(self._keys, columns, strict=True)}


def read_arrow_rows(dataset: Any, replacements: Replacements) -> RowStore:
    """Make rows of a table, a Hugging Face dataset, or the path of a Parquet file (or several)."""
    if isinstance(dataset, (str, os.PathLike)):
        return read_parquet_rows([dataset], replacements)
    if (
        isinstance(dataset, (list, tuple))
        and dataset
        and isinstance(dataset[0], (str, os.PathLike))
    ):
        return read_parquet_rows(dataset, replacements)
    if type(dataset).__module__.partition(".")[0] == "pyarrow" and hasattr(dataset, "to_batches"):
        return TableRows(dataset, None, replacements)
    return IndexedRows(dataset, replacements)


def read_parquet_rows(
    paths: Sequence[str | os.PathLike[str]], replacements: Replacements
) -> TableRows:
    """Read Parquet files, one after the other, into one table."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            "Reading Parquet needs pyarrow, which is not installed: "
            "pip install 'brain-data[arrow]'."
        ) from error
    tables = []
    for path in paths:
        try:
            tables.append(pq.ParquetFile(os.fspath(path), memory_map=True).read())
        except pa.ArrowInvalid as error:  # noqa: PERF203 - says which file
            raise ManifestError(
                f"A Parquet manifest must be a Parquet file; {path} is not ({error}): check it."
            ) from error
    source = ", ".join(map(str, paths))
    try:
        return TableRows(pa.concat_tables(tables), source, replacements)
    except pa.ArrowInvalid as error:
        raise ManifestError(
            f"Parquet files of one dataset must have the same columns; {source} do not: {error}"
        ) from error


def _batches_of(table: Any) -> tuple[list[list[Any]], list[int]]:
    """Take a table apart into the columns of its record batches, and where each begins."""
    batches, starts, start = [], [], 0
    for batch in table.to_batches():
        if batch.num_rows:
            batches.append(list(batch.columns))
            starts.append(start)
            start += batch.num_rows
    return batches, starts
