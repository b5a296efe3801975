"""Datasets of Arrow tables, Hugging Face datasets and Parquet files."""

import pickle
import sys

import pytest

from brain_data import DataItemError, DynamicItemDataset, ManifestError

COLUMNS = {"wav": ["{R}/a", "{R}/b", "{R}/c"], "n": [3, 1, 3], "words": [["x"], [], ["y", "z"]]}


class HuggingFaceLike:
    """The used part of datasets.Dataset: a length, column names, a row by position."""

    def __init__(self):
        self.column_names = list(COLUMNS)
        self.read = []

    def __len__(self):
        return 3

    def __getitem__(self, index):
        self.read.append(index)
        return {key: column[index] for key, column in COLUMNS.items()}


def make(kind, tmp_path, columns=COLUMNS):
    """Return one table as each kind of source."""
    if kind == "huggingface":
        return HuggingFaceLike()
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = pa.table(columns)
    if kind == "table":
        return pa.concat_tables([table.slice(0, 2), table.slice(2, 0), table.slice(2)])
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=2)
    return tmp_path / "rows.parquet"


@pytest.mark.parametrize("kind", ["huggingface", "table", "parquet"])
def test_rows_are_numbered_and_their_strings_formatted(tmp_path, kind):
    """The ID of a row is its position."""
    source = make(kind, tmp_path)
    items = [{"func": len, "takes": "words", "provides": "count"}]
    keys = ["id", "wav", "n", "count"]
    dataset = DynamicItemDataset.from_arrow_dataset(source, {"R": "/data"}, items, keys)
    assert [list(row.values()) for row in dataset] == [
        [0, "/data/a", 3, 1],
        [1, "/data/b", 1, 0],
        [2, "/data/c", 3, 2],
    ]
    assert dataset.data[2]["words"] == ["y", "z"]
    assert [row["id"] for row in dataset.filtered_sorted(sort_key="n", reverse=True)] == [0, 2, 1]
    assert (len(dataset), list(dataset.data_ids), 3 in dataset.data) == (3, [0, 1, 2], False)
    with pytest.raises(KeyError, match="no row 3"):
        dataset.data[3]


def test_a_hugging_face_dataset_is_not_modified_and_read_only_on_access():
    """Reading a row may decode audio; SpeechBrain adds a method to the user's object."""
    source = HuggingFaceLike()
    before = dict(vars(source))
    dataset = DynamicItemDataset.from_arrow_dataset(source, output_keys=["n"])
    assert source.read == []
    assert dataset[1] == {"n": 1}
    assert source.read == [1]
    assert vars(source).keys() == before.keys()


def test_several_parquet_files_are_one_dataset(tmp_path):
    """They are in the given order; the result can be pickled for a spawned worker."""
    path = make("parquet", tmp_path)
    dataset = DynamicItemDataset.from_parquet([path, str(path)], output_keys=["id", "n"])
    twin = pickle.loads(pickle.dumps(dataset))
    assert [tuple(row.values()) for row in twin] == [(0, 3), (1, 1), (2, 3), (3, 3), (4, 1), (5, 3)]


def test_an_error_names_the_row_and_the_file(tmp_path):
    """The same holds for every other manifest."""
    dataset = DynamicItemDataset.from_parquet(make("parquet", tmp_path), {"R": "."})
    dataset.add_dynamic_item(lambda _: 1 / 0, "n", "bad")
    dataset.set_output_keys(["bad"])
    with pytest.raises(DataItemError, match=r"row 2 of .*rows\.parquet"):
        dataset[2]


def test_a_column_named_id_is_refused(tmp_path):
    """It would hide the position."""
    table = make("table", tmp_path, {"id": ["a", "b"], "n": [1, 2]})
    with pytest.raises(ManifestError, match="rename"):
        DynamicItemDataset.from_arrow_dataset(table)


def test_an_invalid_parquet_file_is_named(tmp_path):
    """A file with other columns is named, too."""
    path = make("parquet", tmp_path)
    (tmp_path / "bad.parquet").write_text("ID,wav\n")
    with pytest.raises(ManifestError, match=r"bad\.parquet is not"):
        DynamicItemDataset.from_parquet(tmp_path / "bad.parquet")
    with pytest.raises(FileNotFoundError):
        DynamicItemDataset.from_parquet(tmp_path / "none.parquet")
    (tmp_path / "other").mkdir()
    other = make("parquet", tmp_path / "other", {"m": [1]})
    with pytest.raises(ManifestError, match="same columns"):
        DynamicItemDataset.from_parquet([path, other])


def test_a_stream_is_refused():
    """Rows of a stream have no positions."""
    with pytest.raises(ManifestError, match="got generator"):
        DynamicItemDataset.from_arrow_dataset(row for row in [{"x": 1}])


def test_an_empty_table_is_refused(tmp_path):
    """As is an empty manifest."""
    with pytest.raises(ManifestError, match="at least one row"):
        DynamicItemDataset.from_arrow_dataset(make("table", tmp_path, {"n": []}))


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'brain-data\[arrow\]'"):
        DynamicItemDataset.from_parquet(tmp_path / "rows.parquet")
