"""Datasets whose items are computed from the rows of a manifest, when they are accessed."""

from __future__ import annotations

import contextlib
import math
import operator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from brain_data.dataset.manifest_arrow import load_arrow_rows
from brain_data.dataset.manifest_csv import load_csv_rows
from brain_data.dataset.manifest_json import load_json_rows
from brain_data.dataset.packed_rows import packed_if_large
from brain_data.dataset.pipeline import DataPipeline
from brain_data.dataset.row_store import RowIds, RowStore, reserved_id_error
from brain_data.errors import ManifestError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from brain_data.dataset.items import DynamicItem

    Path = str | os.PathLike[str]
    OutputKeys = Iterable[Any] | Mapping[Any, str]


class DynamicItemDataset(Dataset[dict[Any, Any]]):
    """Rows by ID, and functions that compute further items of a row.

    Only the items that the output keys need are computed, in an order that is determined once.

    Parameters
    ----------
    data : mapping
        From the ID of a row to a mapping with its items. All rows have the keys of the first; the
        ID itself is the item ``"id"``. A dict of 50,000 rows or more of plain values is packed into
        bytes, which forked workers share; later changes of that dict have no effect.
    dynamic_items : iterable, optional
        :class:`DynamicItem` objects, or mappings with ``func``, ``takes`` and ``provides``.
    output_keys : iterable or mapping, optional
        Keys of the dicts that the dataset returns; a mapping is from output name to key.

    Raises
    ------
    DataItemError
        If an item of a row cannot be computed; the message names item, function, row and file.

    Examples
    --------
    >>> dataset = DynamicItemDataset(
    ...     {"a": {"text": "hello world"}, "b": {"text": "how are you"}},
    ...     [{"func": str.split, "takes": "text", "provides": "words"}],
    ...     ["id", "words"],
    ... )
    >>> dataset[1]
    {'id': 'b', 'words': ['how', 'are', 'you']}
    """

    data: Mapping[Any, Mapping[str, Any]]
    data_ids: Sequence[Any]
    pipeline: DataPipeline

    def __init__(
        self,
        data: Mapping[Any, Mapping[str, Any]],
        dynamic_items: Iterable[Any] | None = None,
        output_keys: OutputKeys | None = None,
    ) -> None:
        self.data = packed_if_large(data)
        self.data_ids = _ids_of(self.data)
        self.pipeline = DataPipeline(_static_keys(self), dynamic_items, output_keys)
        self.pipeline.source = getattr(self.data, "source", None)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.data_ids)

    def __getitem__(self, index: int) -> dict[Any, Any]:
        """Return the outputs of the row at `index`."""
        return self.pipeline.compute_row(self._row(index))

    def add_dynamic_item(
        self,
        func: DynamicItem | Callable[..., Any],
        takes: str | Iterable[str] | None = None,
        provides: str | Iterable[Any] | None = None,
    ) -> None:
        """Add an item; see :meth:`DataPipeline.add_dynamic_item`."""
        self.pipeline.add_dynamic_item(func, takes, provides)

    def set_output_keys(self, keys: OutputKeys | None) -> None:
        """Set the output keys; see :meth:`DataPipeline.set_output_keys`."""
        self.pipeline.set_output_keys(keys)

    @contextlib.contextmanager
    def output_keys_as(self, keys: OutputKeys | None) -> Iterator[DynamicItemDataset]:
        """Use other output keys inside a ``with``, and restore the former ones, after errors too.

        Examples
        --------
        >>> dataset = DynamicItemDataset({"a": {"x": 1, "y": 2}}, output_keys=["x"])
        >>> with dataset.output_keys_as(["y"]):
        ...     print(dataset[0])
        {'y': 2}
        >>> dataset[0]
        {'x': 1}
        """
        saved = self.pipeline.output_mapping
        self.pipeline.set_output_keys(keys)
        try:
            yield self
        finally:
            self.pipeline.set_output_keys(saved)

    def iterate_once(self, output_keys: OutputKeys | None = None, progressbar: bool = True) -> None:
        """Compute every row once and discard it, to fill the caches of cached items.

        Parameters
        ----------
        output_keys : iterable or mapping, optional
            Keys to compute instead of the present output keys.
        progressbar : bool
            Show a progress bar if the output is a terminal.
        """
        from tqdm import tqdm

        with self.output_keys_as(output_keys or self.pipeline.output_mapping):
            for index in tqdm(range(len(self)), disable=None if progressbar else True):
                self[index]

    def filtered_sorted(
        self,
        key_min_value: Mapping[str, Any] | None = None,
        key_max_value: Mapping[str, Any] | None = None,
        key_test: Mapping[str, Callable[[Any], Any]] | None = None,
        sort_key: str | None = None,
        reverse: bool = False,
        select_n: int | None = None,
    ) -> FilteredSortedDynamicItemDataset:
        """Return a view of some of the rows, in another order; this dataset does not change.

        Parameters
        ----------
        key_min_value, key_max_value : mapping, optional
            Keep the rows with ``row[key] >= limit`` or ``row[key] <= limit``.
        key_test : mapping, optional
            Keep the rows for which ``func(row[key])`` is true.
        sort_key : str, optional
            Sort by this item. The sort is stable, with `reverse` too.
        reverse : bool
            Largest first.
        select_n : int, optional
            Select the first `select_n` rows that pass, before sorting.
        """
        at_least, at_most = key_min_value or {}, key_max_value or {}
        tests = key_test or {}
        keys = [*at_least, *at_most, *tests, *([sort_key] if sort_key else [])]
        plan = self.pipeline.plan(keys)
        kept: list[int] = []
        sort_values: list[Any] = []
        for index in range(len(self)):
            if select_n is not None and len(kept) >= select_n:
                break
            if not keys:
                kept.append(index)
                continue
            item = plan.run(self._row(index), self.pipeline.source)
            if (
                all(item[key] >= limit for key, limit in at_least.items())
                and all(item[key] <= limit for key, limit in at_most.items())
                and all(test(item[key]) for key, test in tests.items())
            ):
                kept.append(index)
                sort_values.append(item.get(sort_key))
        if sort_key is not None:
            order = _sorted_order(sort_values, sort_key, reverse, lambda i: self.data_ids[kept[i]])
            kept = [kept[i] for i in order]
        return self._view(kept)

    def overfit_test(self, sample_count: int, total_count: int) -> FilteredSortedDynamicItemDataset:
        """Repeat the first `sample_count` rows until there are `total_count`."""
        first = range(len(self))[:sample_count]
        if not first:
            raise ValueError(
                f"An overfitting test needs at least one row; got sample_count={sample_count!r} of "
                f"{len(self)} rows: use 1 or more."
            )
        repeated = [*first] * math.ceil(total_count / len(first))
        return self._view(repeated[:total_count])

    def batch_shuffle(self, batch_size: int) -> FilteredSortedDynamicItemDataset:
        """Shuffle groups of `batch_size` rows by torch's generator; remaining rows stay last."""
        count = len(self) // batch_size
        # order: (count, batch_size) row numbers, one group in each line
        order = torch.randperm(count).unsqueeze(1) * batch_size + torch.arange(batch_size)
        rest = range(count * batch_size, len(self))
        return self._view([*order.flatten().tolist(), *rest])

    @classmethod
    def from_json(
        cls,
        json_path: Path,
        replacements: Mapping[str, Any] | None = None,
        dynamic_items: Iterable[Any] | None = None,
        output_keys: OutputKeys | None = None,
    ) -> DynamicItemDataset:
        """Return a dataset of a JSON manifest; see :func:`load_data_json`.

        The rows of a large file (4 MiB) are kept as bytes, which forked workers share: loading
        finds the position of each row, and a row is parsed when it is accessed.
        """
        dataset = cls(load_json_rows(json_path, replacements), dynamic_items, output_keys)
        dataset.pipeline.source = json_path
        return dataset

    @classmethod
    def from_csv(
        cls,
        csv_path: Path,
        replacements: Mapping[str, Any] | None = None,
        dynamic_items: Iterable[Any] | None = None,
        output_keys: OutputKeys | None = None,
    ) -> DynamicItemDataset:
        """Return a dataset of a CSV manifest; see :func:`load_data_csv`."""
        dataset = cls(load_csv_rows(csv_path, replacements), dynamic_items, output_keys)
        dataset.pipeline.source = csv_path
        return dataset

    @classmethod
    def from_arrow_dataset(
        cls,
        dataset: Any,
        replacements: Mapping[str, Any] | None = None,
        dynamic_items: Iterable[Any] | None = None,
        output_keys: OutputKeys | None = None,
    ) -> DynamicItemDataset:
        """Return a dataset of a Hugging Face dataset, a ``pyarrow.Table`` or Parquet files.

        Parameters
        ----------
        dataset : datasets.Dataset, pyarrow.Table, path or list of paths
            The ID of a row is its position. The argument is not modified.
        replacements : mapping, optional
            Formats the strings of a row, as in JSON.
        dynamic_items, output_keys
            As for the class.
        """
        return cls(load_arrow_rows(dataset, replacements), dynamic_items, output_keys)

    @classmethod
    def from_parquet(
        cls,
        paths: Path | Sequence[Path],
        replacements: Mapping[str, Any] | None = None,
        dynamic_items: Iterable[Any] | None = None,
        output_keys: OutputKeys | None = None,
    ) -> DynamicItemDataset:
        """Return a dataset of one or several Parquet files (the extra ``brain-data[arrow]``)."""
        return cls(load_arrow_rows(paths, replacements), dynamic_items, output_keys)

    def _row(self, index: int) -> dict[str, Any]:
        """Return a new dict with the row and its ID."""
        ids = self.data_ids
        if type(ids) is RowIds:
            return ids.row(index)
        uid = ids[operator.index(index)]
        return {"id": uid, **self.data[uid]}

    def _view(self, indices: Sequence[int]) -> FilteredSortedDynamicItemDataset:
        ids = self.data_ids
        chosen = ids.take(indices) if isinstance(ids, RowIds) else [ids[i] for i in indices]
        return FilteredSortedDynamicItemDataset(self, chosen)


class FilteredSortedDynamicItemDataset(DynamicItemDataset):
    """A view of some rows of another dataset, in another order; see ``filtered_sorted``.

    The rows are shared. Changes of output keys and items do not affect the other dataset. The
    functions of the items are the same objects (SpeechBrain copies them, so that an encoder that is
    fitted later is fitted in one of the two datasets only).
    """

    def __init__(self, from_dataset: DynamicItemDataset, data_ids: Sequence[Any]) -> None:
        self.data = from_dataset.data
        self.data_ids = data_ids
        self.pipeline = from_dataset.pipeline.copy()

    @classmethod
    def from_json(cls, *args: Any, **kwargs: Any) -> DynamicItemDataset:  # noqa: ARG003
        """Raise TypeError: a view cannot be made from a file."""
        raise TypeError(_NOT_FROM_A_FILE)

    @classmethod
    def from_csv(cls, *args: Any, **kwargs: Any) -> DynamicItemDataset:  # noqa: ARG003
        """Raise TypeError: a view cannot be made from a file."""
        raise TypeError(_NOT_FROM_A_FILE)

    @classmethod
    def from_arrow_dataset(cls, *args: Any, **kwargs: Any) -> DynamicItemDataset:  # noqa: ARG003
        """Raise TypeError: a view cannot be made from a file."""
        raise TypeError(_NOT_FROM_A_FILE)

    @classmethod
    def from_parquet(cls, *args: Any, **kwargs: Any) -> DynamicItemDataset:  # noqa: ARG003
        """Raise TypeError: a view cannot be made from a file."""
        raise TypeError(_NOT_FROM_A_FILE)


_NOT_FROM_A_FILE = (
    "A FilteredSortedDynamicItemDataset is a view of another dataset; got a file: use "
    "DynamicItemDataset.from_json or from_csv, then filtered_sorted()."
)


def add_dynamic_item(
    datasets: Iterable[DynamicItemDataset],
    func: DynamicItem | Callable[..., Any],
    takes: str | Iterable[str] | None = None,
    provides: str | Iterable[Any] | None = None,
) -> None:
    """Add an item to several datasets."""
    for dataset in datasets:
        dataset.add_dynamic_item(func, takes, provides)


def set_output_keys(datasets: Iterable[DynamicItemDataset], output_keys: OutputKeys | None) -> None:
    """Set the output keys of several datasets."""
    for dataset in datasets:
        dataset.set_output_keys(output_keys)


def _ids_of(data: Mapping[Any, Mapping[str, Any]]) -> Sequence[Any]:
    return RowIds(data) if isinstance(data, RowStore) else list(data)


def _static_keys(dataset: DynamicItemDataset) -> list[str]:
    data, ids = dataset.data, dataset.data_ids
    if not len(ids):
        raise ManifestError(
            "A dataset needs at least one row, which defines its keys; got none: check the file or "
            "the filter."
        )
    if isinstance(data, RowStore):
        return data.item_keys()
    row = data[ids[0]]
    if "id" in row:
        raise reserved_id_error(ids[0], row, None)
    return [*row, "id"]


def _sorted_order(
    values: list[Any], sort_key: str, reverse: bool, uid: Callable[[int], Any]
) -> list[int]:
    for i, value in enumerate(values):
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(
                f"Rows must be sorted by values that have an order; {sort_key!r} of row {uid(i)!r} "
                "is nan: correct that row, or filter it out with key_test."
            )
    try:
        # Python's sort is stable in both directions.
        return sorted(range(len(values)), key=values.__getitem__, reverse=reverse)
    except TypeError as error:
        types = sorted({type(value).__name__ for value in values})
        raise TypeError(
            f"Rows must be sorted by values that can be compared; {sort_key!r} holds {types} "
            f"({error}): convert them to one type."
        ) from error
