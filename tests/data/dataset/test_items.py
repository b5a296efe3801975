"""Items: decorators, generators, and the cache."""

import os

import pytest
import torch

from brain_data import CachedDynamicItem, DynamicItem, GeneratorDynamicItem, provides, takes


def test_decorators_make_the_right_type_of_item_in_either_order():
    """A generator function becomes a generator item."""

    @provides("y")
    @takes("x")
    def plain(x):
        return x + 1

    @takes("x")
    @provides("y")
    def stepwise(x):
        yield x + 1

    assert type(plain) is DynamicItem
    assert type(stepwise) is GeneratorDynamicItem
    assert (plain.takes, plain.provides, plain(1)) == (("x",), ("y",), 2)


@pytest.mark.parametrize("decorator", [takes, provides])
def test_decorating_twice_is_refused(decorator):
    """The keys of the first decorator would be lost."""
    item = decorator("a")(abs)
    with pytest.raises(ValueError, match="once"):
        decorator("b")(item)


def test_a_generator_item_is_called_step_by_step():
    """Only the first call has arguments, and reset() starts the next row."""
    item = GeneratorDynamicItem(
        takes=["x"], func=lambda x: (x + i for i in range(2)), provides=["a", ["b"]]
    )
    assert item.next_takes() == ["x"]
    assert item(1) == 1
    assert item.next_takes() == []
    assert item.next_provides() == ["b"]
    assert item() == 2
    with pytest.raises(RuntimeError, match="called again"):
        item()
    item.reset()
    assert item(5) == 5


def make_cached(folder, ran):
    @CachedDynamicItem.cache(folder)
    @takes("id", "x")
    @provides("y")
    def slow(uid, x):
        ran.append(uid)
        return torch.tensor([x])

    return slow


def test_a_cached_item_is_computed_once(tmp_path):
    """The file has the name of the row, as in SpeechBrain."""
    ran = []
    slow = make_cached(tmp_path / "cache", ran)
    assert slow("row1", 3).tolist() == slow("row1", 99).tolist() == [3]
    assert ran == ["row1"]
    assert os.listdir(tmp_path / "cache") == ["row1.pt"]


@pytest.mark.parametrize("uid", ["spk/utt", "..", "a b+c", 17])
def test_any_id_is_one_file_in_the_folder(tmp_path, uid):
    """A slash in an ID does not lead out of the folder."""
    ran = []
    slow = make_cached(tmp_path / "cache", ran)
    slow(uid, 1)
    slow(uid, 1)
    assert ran == [uid]
    assert len(os.listdir(tmp_path / "cache")) == 1
    assert os.listdir(tmp_path) == ["cache"]


def test_a_damaged_file_of_the_cache_is_computed_again(tmp_path):
    """A file that cannot be read causes a warning."""
    slow = make_cached(tmp_path, [])
    (tmp_path / "row1.pt").write_bytes(b"half a fi")
    with pytest.warns(UserWarning, match="computed again"):
        assert slow("row1", 4).tolist() == [4]
    assert slow("row1", 5).tolist() == [4]


def test_a_value_that_could_not_be_read_safely_is_refused_when_it_is_stored(tmp_path):
    """It is found at the first row, not in the second epoch."""
    item = CachedDynamicItem(tmp_path, ["id"], lambda uid: object, ["y"])
    with pytest.raises(TypeError, match=r"consist of tensors, numbers.*'y'"):
        item("row1")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("takes", "words"),
    [
        ([], "Expected 'takes' list to have at least one item, but 'takes' is empty"),
        (["x", "id"], "First item in 'takes' list must be 'id'"),
    ],
)
def test_a_cached_item_must_take_the_id_first(tmp_path, takes, words):
    """The ID names the file; the errors begin with SpeechBrain's words."""
    with pytest.raises(ValueError, match=f"^{words}.*write @takes"):
        CachedDynamicItem(tmp_path, takes, abs, ["y"])


def test_only_an_item_that_returns_its_value_can_be_cached(tmp_path):
    """A bare function has no keys, and a generator no single value."""

    @takes("id")
    @provides("y")
    def stepwise(uid):
        yield uid

    for other in (abs, stepwise):
        with pytest.raises(ValueError, match=r"^Can only cache a DynamicItem.*above @takes"):
            CachedDynamicItem.cache(tmp_path)(other)


def test_a_subclass_may_store_values_elsewhere(tmp_path):
    """It replaces the methods that a subclass of SpeechBrain's class replaces."""
    stored = {}

    class InMemory(CachedDynamicItem):
        def _is_cached(self, uid):
            return uid in stored

        def _load(self, uid):
            return stored[uid]

        def _cache(self, result, uid):
            stored[uid] = result

    item = InMemory(tmp_path, ["id", "x"], lambda uid, x: object(), ["y"])
    first = item("row1", 1)
    assert item("row1", 2) is first is stored["row1"]
    assert os.listdir(tmp_path) == []


def test_a_subclass_may_name_its_files(tmp_path):
    """The default methods ask for the path."""

    class InFolders(CachedDynamicItem):
        def _uid2path(self, uid):
            folder = self.cache_location / uid[:2]
            folder.mkdir(exist_ok=True)
            return folder / f"{uid}.pt"

    ran = []
    item = InFolders(tmp_path, ["id"], lambda uid: ran.append(uid) or [1], ["y"])
    assert item("row1") == item("row1") == [1]
    assert ran == ["row1"]
    assert os.listdir(tmp_path / "ro") == ["row1.pt"]
    assert item._is_cached("row1")
    assert item._load("row1") == [1]
