"""Datasets: rows by position, views, and output keys."""

import copy
import json
import pickle

import pytest
import torch

from brain_data import (
    CachedDynamicItem,
    DataItemError,
    DynamicItemDataset,
    FilteredSortedDynamicItemDataset,
    ManifestError,
    add_dynamic_item,
    provides,
    set_output_keys,
    takes,
)

LENGTHS = {"a": 3, "b": 1, "c": 3, "d": 2, "e": 1}


@pytest.fixture(params=["dict", "packed"])
def dataset(request, tmp_path, monkeypatch):
    """The same five rows as dicts, and as bytes of a file."""
    data = {uid: {"n": n, "text": uid * n} for uid, n in LENGTHS.items()}
    if request.param == "dict":
        return DynamicItemDataset(data, output_keys=["id"])
    monkeypatch.setattr("brain_data.dataset.manifest_json.PACK_BYTES", 0)
    (tmp_path / "rows.json").write_text(json.dumps(data))
    return DynamicItemDataset.from_json(tmp_path / "rows.json", output_keys=["id"])


def ids(dataset):
    return [row["id"] for row in dataset]


def test_a_row_has_its_items_and_its_id(dataset):
    """Static items are returned unchanged."""
    dataset.set_output_keys(["id", "n", "text"])
    assert dataset[2] == dataset[-3] == {"id": "c", "n": 3, "text": "ccc"}
    assert dataset[torch.tensor(2)]["id"] == "c"
    assert len(dataset) == 5


@pytest.mark.parametrize("index", [5, -6])
def test_an_index_after_the_last_row_is_an_error(dataset, index):
    """A for loop over the dataset ends by it."""
    with pytest.raises(IndexError):
        dataset[index]


def test_the_ids_and_the_data_are_like_a_list_and_a_dict(dataset):
    """Recipes slice the IDs and look rows up in the data."""
    assert dataset.data_ids == list("abcde")
    assert list(dataset.data_ids[1:3]) == ["b", "c"]
    assert dataset.data["d"]["n"] == 2
    assert dataset.data[dataset.data_ids[-1]] == {"n": 1, "text": "e"}
    assert list(dataset.data) == list(dataset.data.keys()) == list("abcde")
    assert "a" in dataset.data
    assert "f" not in dataset.data
    with pytest.raises(KeyError):
        dataset.data["f"]


def test_the_ids_can_be_replaced(dataset):
    """Recipes shorten a dataset by assigning data_ids."""
    dataset.data_ids = dataset.data_ids[:2]
    assert ids(dataset) == ["a", "b"]
    dataset.data_ids = ["d", "a"]
    assert (ids(dataset), len(dataset)) == (["d", "a"], 2)


def test_output_keys_are_restored_after_an_error(dataset):
    """SpeechBrain leaves them changed."""

    def fail():
        with dataset.output_keys_as({"length": "n"}) as same:
            assert same is dataset
            assert dataset[0] == {"length": 3}
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert dataset[0] == {"id": "a"}


def test_filtering_combines_bounds_and_tests(dataset):
    """All of them must hold, and the bounds are inclusive."""
    view = dataset.filtered_sorted(
        key_min_value={"n": 2},
        key_max_value={"n": 3},
        key_test={"text": lambda text: text != "ccc"},
    )
    assert isinstance(view, FilteredSortedDynamicItemDataset)
    assert ids(view) == ["a", "d"]


@pytest.mark.parametrize(("reverse", "order"), [(False, "bedac"), (True, "acdbe")])
def test_sorting_is_stable(dataset, reverse, order):
    """In both directions (SpeechBrain reverses ties with reverse=True)."""
    assert ids(dataset.filtered_sorted(sort_key="n", reverse=reverse)) == list(order)


def test_select_n_takes_the_first_that_pass_and_then_sorts(dataset):
    """The order of the two is SpeechBrain's."""
    view = dataset.filtered_sorted(key_min_value={"n": 2}, sort_key="n", select_n=3)
    assert ids(view) == ["d", "a", "c"]
    assert ids(dataset.filtered_sorted(select_n=2)) == ["a", "b"]


def test_filtering_does_not_change_the_source(dataset):
    """Its rows get no ID, and its output keys and items do not change."""
    before = {uid: dict(row) for uid, row in dataset.data.items()}
    view = dataset.filtered_sorted(sort_key="n")
    view.set_output_keys(["n"])
    view.add_dynamic_item(len, "text", "length")
    assert {uid: dict(row) for uid, row in dataset.data.items()} == before
    assert dataset[0] == {"id": "a"}
    assert "length" not in dataset.pipeline.key_to_node
    DynamicItemDataset(dict(dataset.data))  # refuses rows with an "id" of their own


def test_filtering_by_a_computed_item_computes_nothing_else(dataset):
    """A slow item that the filter does not need is not run."""
    dataset.add_dynamic_item(len, "text", "length")
    dataset.add_dynamic_item(lambda _: 1 / 0, "text", "slow")
    dataset.set_output_keys(["id", "slow"])
    view = dataset.filtered_sorted(key_max_value={"length": 1})
    view.set_output_keys(["id", "length"])
    assert list(view) == [{"id": "b", "length": 1}, {"id": "e", "length": 1}]


def test_a_view_of_a_view_keeps_its_order(dataset):
    """Filters can be chained."""
    view = dataset.filtered_sorted(sort_key="n", reverse=True).filtered_sorted(select_n=3)
    assert ids(view) == ["a", "c", "d"]
    assert ids(view.filtered_sorted(sort_key="n")) == ["d", "a", "c"]
    assert len(view.filtered_sorted(key_min_value={"n": 9})) == 0


def test_an_item_that_is_fitted_later_is_fitted_in_the_view_too(dataset):
    """A view shares the functions (SpeechBrain copies them)."""

    class Encoder:
        known = 0

        def encode(self, _):
            return self.known

    encoder = Encoder()
    dataset.add_dynamic_item(encoder.encode, "text", "code")
    view = dataset.filtered_sorted(sort_key="n")
    view.set_output_keys(["code"])
    encoder.known = 7
    assert view[0] == {"code": 7}


def test_sorting_by_nan_is_refused(dataset):
    """The order would be undefined."""
    dataset.add_dynamic_item(lambda n: float("nan") if n == 2 else float(n), "n", "seconds")
    with pytest.raises(ValueError, match="'seconds' of row 'd' is nan"):
        dataset.filtered_sorted(sort_key="seconds")


def test_sorting_by_values_of_mixed_types_is_refused(dataset):
    """The error names the key and the types."""
    dataset.add_dynamic_item(lambda n: n if n == 2 else str(n), "n", "mixed")
    with pytest.raises(TypeError, match=r"'mixed' holds \['int', 'str'\]"):
        dataset.filtered_sorted(sort_key="mixed")


def test_an_overfitting_test_repeats_the_first_rows(dataset):
    """The number of rows need not be a multiple."""
    assert ids(dataset.overfit_test(2, 5)) == list("ababa")
    assert ids(dataset.overfit_test(9, 7)) == list("abcdeab")
    with pytest.raises(ValueError, match="at least one row"):
        dataset.overfit_test(0, 5)


def test_batch_shuffle_shuffles_whole_batches_by_torch_s_generator(dataset):
    """The permutation is SpeechBrain's; the remaining rows stay last."""
    torch.manual_seed(3)
    expected = [list("abcd")[2 * i + j] for i in torch.randperm(2).tolist() for j in (0, 1)]
    torch.manual_seed(3)
    assert ids(dataset.batch_shuffle(2)) == [*expected, "e"]


def test_iterating_once_fills_the_caches(dataset, tmp_path):
    """Only the requested keys are computed; the output keys do not change."""

    @CachedDynamicItem.cache(tmp_path / "cache")
    @takes("id", "n")
    @provides("big")
    def big(uid, n):
        return n * 10

    dataset.add_dynamic_item(big)
    dataset.iterate_once(["big"], progressbar=False)
    assert len(list((tmp_path / "cache").iterdir())) == 5
    assert dataset[0] == {"id": "a"}


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_dataset_can_be_cloned_after_use(dataset, clone):
    """A spawned worker unpickles it, and can look rows up by ID."""
    assert dataset.data["b"]["n"] == 1
    twin = clone(dataset.filtered_sorted(sort_key="n"))
    assert ids(twin) == list("bedac")
    assert twin.data["c"]["n"] == 3


def test_several_datasets_get_one_item_and_one_set_of_keys():
    """The two functions are SpeechBrain's."""
    pair = [DynamicItemDataset({"a": {"x": -1}}), DynamicItemDataset({"b": {"x": -2}})]
    add_dynamic_item(pair, abs, "x", "y")
    set_output_keys(pair, ["y"])
    assert [one[0] for one in pair] == [{"y": 1}, {"y": 2}]


def test_items_and_keys_can_be_given_to_the_constructor():
    """A HyperPyYAML file does this."""
    items = [{"func": abs, "takes": ["x"], "provides": "y"}, takes("y")(provides("z")(abs))]
    assert DynamicItemDataset({"a": {"x": -1}}, items, {"out": "z"})[0] == {"out": 1}


def test_two_datasets_share_one_dict():
    """Filtering one does not modify the rows (SpeechBrain writes "id" into them)."""
    data = {"a": {"x": 1}}
    DynamicItemDataset(data).filtered_sorted(sort_key="x")
    assert DynamicItemDataset(data, output_keys=["id", "x"])[0] == {"id": "a", "x": 1}
    assert data == {"a": {"x": 1}}


def test_a_row_with_a_key_named_id_is_refused(tmp_path, monkeypatch):
    """It would hide the ID."""
    with pytest.raises(ManifestError, match="row 'a' has such a key"):
        DynamicItemDataset({"a": {"id": 1}})
    monkeypatch.setattr("brain_data.dataset.manifest_json.PACK_BYTES", 0)
    (tmp_path / "rows.json").write_text('{"a": {"x": 1}, "b": {"x": 1, "id": 2}}')
    dataset = DynamicItemDataset.from_json(tmp_path / "rows.json", output_keys=["x"])
    assert dataset[0] == {"x": 1}
    with pytest.raises(ManifestError, match=r"row 'b' of .*rows\.json has such a key"):
        dataset[1]


def test_loading_a_file_does_not_parse_every_row(tmp_path, monkeypatch):
    """An index of all IDs is built when a row is first looked up by ID, and not before."""
    monkeypatch.setattr("brain_data.dataset.manifest_json.PACK_BYTES", 0)
    (tmp_path / "rows.json").write_text('{"a": {"x": 1}, "b": {"x": 2}}')
    dataset = DynamicItemDataset.from_json(tmp_path / "rows.json", output_keys=["x"])
    assert [row["x"] for row in dataset.filtered_sorted(sort_key="x", reverse=True)] == [2, 1]
    assert dataset.data._index is None
    assert dataset.data["b"] == {"x": 2}
    assert dataset.data._index is not None


def test_a_dataset_without_rows_is_refused():
    """It would have no keys."""
    with pytest.raises(ManifestError, match="at least one row"):
        DynamicItemDataset({})


@pytest.mark.parametrize("name", ["from_json", "from_csv", "from_arrow_dataset", "from_parquet"])
def test_a_view_cannot_be_made_from_a_file(name):
    """The error names the alternative."""
    with pytest.raises(TypeError, match="filtered_sorted"):
        getattr(FilteredSortedDynamicItemDataset, name)("x")


def test_a_missing_file_is_named_with_its_row(dataset, tmp_path):
    """The error is the same through a loader's worker."""
    dataset.add_dynamic_item(lambda text: open(tmp_path / text), "text", "audio")  # noqa: SIM115
    dataset.set_output_keys(["audio"])
    for loader in (dataset, torch.utils.data.DataLoader(dataset, num_workers=1)):
        with pytest.raises(
            DataItemError, match=r"Item 'audio' of row 'a'.*(\n.*)*FileNotFoundError"
        ):
            next(iter(loader))
