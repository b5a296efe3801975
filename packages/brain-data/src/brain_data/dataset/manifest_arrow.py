"""Rows of an Arrow table, of a Hugging Face dataset, or of Parquet files."""

from __future__ import annotations

import bisect
import os
from typing import TYPE_CHECKING, Any

from brain_data.dataset.replacements import format_row
from brain_data.dataset.row_store import RowStore, missing_row_error
from brain_data.errors import ManifestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Replacements = Mapping[str, Any] | None


class _NumberedRows(RowStore):
    """Rows whose IDs are their positions."""

    def __init__(
        self, length: int, keys: list[str], source: object, replacements: Replacements
    ) -> None:
        if "id" in keys:
            raise ManifestError(
                f"The key 'id' is reserved for the position of a row; the table has such a column "
                f"among {keys!r}: rename it (rename_column, or rename_columns for pyarrow)."
            )
        self.source = source
        self._keys = keys
        self._length = length
        self._replacements = replacements

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._length

    def item_keys(self) -> list[str]:
        """Return the names of the columns, and ``"id"``, without reading a row."""
        return [*self._keys, "id"]

    def id_at(self, index: int) -> int:
        """Return the position itself."""
        return index

    def find(self, uid: Any) -> int:
        """Return the position itself; raise KeyError if there is no such row."""
        if type(uid) is not int or not 0 <= uid < self._length:
            raise missing_row_error(uid, self.source)
        return uid

    def row_at(self, index: int) -> dict[str, Any]:
        """Read and return the row at `index`, with its position as ID."""
        row = self._read(index)
        if self._replacements:
            row = format_row(str(index), row, self._replacements, self.source)
        row["id"] = index
        return row

    def _read(self, index: int) -> dict[str, Any]:
        raise NotImplementedError


class IndexedRows(_NumberedRows):
    """Rows of any dataset that returns a mapping for a position, such as Hugging Face's."""

    def __init__(self, dataset: Any, replacements: Replacements = None) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise ManifestError(
                "from_arrow_dataset needs a dataset with a length and rows by position, a "
                f"pyarrow.Table or a Parquet file; got {type(dataset).__name__}: load it without "
                "streaming, for example."
            )
        # The names of the columns, if they are known: reading a row may decode audio.
        names = getattr(dataset, "column_names", None)
        keys = list(names) if isinstance(names, list) else list(dataset[0]) if len(dataset) else []
        super().__init__(len(dataset), keys, None, replacements)
        self._dataset = dataset

    def _read(self, index: int) -> dict[str, Any]:
        return dict(self._dataset[index])


class TableRows(_NumberedRows):
    """Rows of a ``pyarrow.Table``, whose memory forked workers share."""

    def __init__(
        self, table: Any, source: object = None, replacements: Replacements = None
    ) -> None:
        super().__init__(table.num_rows, list(table.column_names), source, replacements)
        self._batches, self._starts = _batches_of(table)

    def _read(self, index: int) -> dict[str, Any]:
        batch = bisect.bisect_right(self._starts, index) - 1
        offset = index - self._starts[batch]
        columns = self._batches[batch]
        return {
            key: column[offset].as_py() for key, column in zip(self._keys, columns, strict=True)
        }


def load_arrow_rows(dataset: Any, replacements: Replacements) -> RowStore:
    """Return the rows of a table, of a Hugging Face dataset, or of one or several Parquet files."""
    if isinstance(dataset, (str, os.PathLike)):
        return load_parquet_rows([dataset], replacements)
    if (
        isinstance(dataset, (list, tuple))
        and dataset
        and isinstance(dataset[0], (str, os.PathLike))
    ):
        return load_parquet_rows(dataset, replacements)
    if type(dataset).__module__.partition(".")[0] == "pyarrow" and hasattr(dataset, "to_batches"):
        return TableRows(dataset, None, replacements)
    return IndexedRows(dataset, replacements)


def load_parquet_rows(
    paths: Sequence[str | os.PathLike[str]], replacements: Replacements
) -> TableRows:
    """Return the rows of Parquet files, one after the other, as one table."""
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
        except pa.ArrowInvalid as error:  # noqa: PERF203 - the error names the file
            raise ManifestError(
                f"A Parquet manifest must be a Parquet file; {path} is not ({error}): check it."
            ) from error
    source = ", ".join(map(str, paths))
    try:
        return TableRows(pa.concat_tables(tables), source, replacements)
    except pa.ArrowInvalid as error:
        raise ManifestError(
            f"Parquet files of one dataset must have the same columns; {source} do not ({error}): "
            "rename or drop the columns that differ."
        ) from error


def _batches_of(table: Any) -> tuple[list[list[Any]], list[int]]:
    """Return the columns of each record batch of a table, and the row at which each begins."""
    batches, starts, start = [], [], 0
    for batch in table.to_batches():
        if batch.num_rows:
            batches.append(list(batch.columns))
            starts.append(start)
            start += batch.num_rows
    return batches, starts
