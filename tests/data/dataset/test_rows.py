"""Packed rows: compared with the standard parser, and in forked workers."""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brain_data import DynamicItemDataset, ManifestError
from brain_data.dataset import json_scanner, packed_rows
from brain_data.dataset.manifest_json import JsonRows, load_json_rows
from brain_data.dataset.packed_rows import MarshalledRows, packed_if_large
from brain_data.dataset.row_store import RowIds

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
# Strings that would mislead a scanner: quotes, backslashes, brackets, colons and commas.
NASTY = st.text(alphabet='"\\{}[]:, \n\u00e9', max_size=8)
ROWS = st.dictionaries(
    st.text(max_size=20) | NASTY,
    st.dictionaries(
        st.text(max_size=3).filter(lambda key: key != "id"), VALUES | NASTY, max_size=3
    ),
    min_size=1,
    max_size=6,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Return the path of a file that each case overwrites."""
    return tmp_path_factory.mktemp("rows") / "rows.json"


@pytest.fixture(autouse=True)
def _pack_everything(monkeypatch):
    monkeypatch.setattr("brain_data.dataset.manifest_json.PACK_BYTES", 0)
    monkeypatch.setattr("brain_data.dataset.manifest_csv.PACK_BYTES", 0)


def doubled(value):
    """Double braces, as a manifest requires."""
    if isinstance(value, str):
        return value.replace("{", "{{").replace("}", "}}")
    if isinstance(value, list):
        return [doubled(item) for item in value]
    if isinstance(value, dict):
        return {key: doubled(item) for key, item in value.items()}
    return value


@pytest.mark.parametrize("chunk", [16, 2**20])
@settings(max_examples=60, deadline=None)
@given(
    ROWS, st.sampled_from([None, 0, 2, "\t"]), st.booleans(), st.sampled_from(["", "\ufeff", "\n "])
)
def test_packed_rows_equal_what_the_parser_returns(path, chunk, data, indent, ascii_only, lead):
    """Strings, layout and chunk size are arbitrary."""
    written = {uid: {key: doubled(one) for key, one in row.items()} for uid, row in data.items()}
    text = lead + json.dumps(written, indent=indent, ensure_ascii=ascii_only)
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("brain_data.dataset.json_scanner._CHUNK_BYTES", chunk)
        rows = load_json_rows(path)
    assert isinstance(rows, JsonRows)
    assert list(rows) == list(data)
    assert {uid: dict(row) for uid, row in rows.items()} == data
    assert [rows.row_at(i) for i in range(len(rows))] == [
        {**row, "id": uid} for uid, row in data.items()
    ]


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_marshalled_rows_are_the_same_values(data):
    """The types are equal, too."""
    rows = MarshalledRows(data.items(), None)
    assert {uid: dict(row) for uid, row in rows.items()} == data
    assert list(rows) == list(data)


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_noise_is_never_accepted_as_rows(path, noise):
    """What the scanner accepts, the parser accepts too."""
    path.write_bytes(b'{"a": {"x": 1}, "b": ' + noise + b"}")
    try:
        rows = load_json_rows(path)
        found = {uid: dict(row) for uid, row in rows.items()}
    except (ManifestError, UnicodeDecodeError):
        return
    assert found == json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("wide", [1, 8, 9, 300])
def test_duplicate_ids_are_found_among_thousands(path, wide):
    """IDs of any length are compared."""
    rows = [f'"{i:0{wide}d}": {{"x": {i}}}' for i in range(10 ** min(wide, 3))]
    path.write_text("{" + ",\n".join(rows) + "}")
    assert len(load_json_rows(path)) == len(rows)
    path.write_text("{" + ", ".join([*rows, rows[3]]) + "}")
    with pytest.raises(ManifestError, match="twice"):
        load_json_rows(path)


@pytest.mark.parametrize("name", ["{0:07d}", "spk{1:04d}-{0:07d}", "{1:08d}{0:08d}", "a{0}"])
def test_ids_that_count_up_have_different_hashes(name):
    """If two hashes were equal, a million rows would be parsed in vain."""
    ids = [name.format(i, i % 997).encode() for i in range(200_000)]
    ends = np.cumsum([len(uid) for uid in ids])
    buffer = np.frombuffer(b"".join(ids) + bytes(8), np.uint8)
    hashes = json_scanner._hashes(buffer, np.concatenate([[0], ends[:-1]]), ends)
    assert len(np.unique(hashes)) == len(ids)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": {"x": 1} "b": {"x": 2}}',
        '{"a": {"x": 1},, "b": {"x": 2}}',
        '{"a": {"x": 1}, "b" {"x": 2}}',
        '{"a": {"x": 1}, "b": {"x": 2}',
        '{"a": {"x": 1}, "b": {"x": 2}}}',
        '{"a": {"x": 1}, "b": {"x": 2}} more',
        '{"a": {"x": 1}, "b": {"x": 2},}',
        '{"a": {"x": 1}, "b": {"x": 2]}',
        '{"a": {"x": 1}, "b": nul}',
        '{"a": {"x": 1}, {"x": 2}}',
        'x{"a": {"x": 1}}',
        '["a", {"x": 1}]',
    ],
)
def test_invalid_json_is_refused(path, text):
    """At the latest when the row is accessed, with its ID."""
    path.write_text(text)
    with pytest.raises(ManifestError, match=r"valid JSON|mapping"):
        _ = [dict(row) for row in load_json_rows(path).values()]


def test_unusual_white_space_is_parsed(path):
    """Correct JSON is never refused."""
    path.write_text('{"a" : {"x": 1}' + " " * 99 + ', "b"\n:\n{"x": 2}}')
    assert {uid: dict(row) for uid, row in load_json_rows(path).items()} == {
        "a": {"x": 1},
        "b": {"x": 2},
    }


def test_a_packed_row_cannot_be_written_to(path):
    """The write would be lost."""
    path.write_text('{"a": {"x": 1}}')
    with pytest.raises(TypeError, match="assignment"):
        load_json_rows(path)["a"]["x"] = 2


def test_csv_rows_are_packed_too(tmp_path):
    """Values and errors are the same."""
    path = tmp_path / "rows.csv"
    path.write_text("ID,duration,wav\nu1,1.5,$R/a\nu2,2,$R/b\n")
    dataset = DynamicItemDataset.from_csv(path, {"R": "/x"}, output_keys=["id", "duration", "wav"])
    assert isinstance(dataset.data, MarshalledRows)
    assert list(dataset) == [
        {"id": "u1", "duration": 1.5, "wav": "/x/a"},
        {"id": "u2", "duration": 2.0, "wav": "/x/b"},
    ]
    assert dataset.data["u2"]["wav"] == "/x/b"
    path.write_text("ID,wav\nu1,a\nu1,b\n")
    with pytest.raises(ManifestError, match="line 3"):
        DynamicItemDataset.from_csv(path)


def test_a_large_dict_of_plain_values_is_packed(monkeypatch):
    """A dict with an array, a NumPy number or another mapping is not packed."""
    monkeypatch.setattr(packed_rows, "PACK_ROWS", 2)
    plain = {"a": {"x": 1, "y": ["z", (1.5, None)]}, "b": {"x": 2, "y": {"k": b""}}}
    dataset = DynamicItemDataset(plain, output_keys=["id", "x", "y"])
    assert isinstance(dataset.data, MarshalledRows)
    assert list(dataset) == [{"id": uid, **row} for uid, row in plain.items()]
    assert type(dataset[0]["y"][1]) is tuple
    for odd in (np.float64(1), np.arange(2), object(), {1}, [np.int64(1)]):
        data = {"a": {"x": odd}, "b": {"x": 1}}
        assert packed_if_large(data) is data
    assert packed_if_large({"a": plain["a"]}) == {"a": plain["a"]}


def test_ids_are_a_sequence():
    """Recipes use them as SpeechBrain's list."""
    rows = MarshalledRows([(uid, {"x": uid}) for uid in "abcd"], None)
    ids = RowIds(rows)
    assert ids[1] == ids[-3] == "b"
    assert (len(ids), list(reversed(ids)), "c" in ids, ids.index("d")) == (4, list("dcba"), True, 3)
    assert ids[::2] == ["a", "c"] == ids.take([0, 2])
    assert ids[1:].take([2, 0])[::-1] == ("b", "d")
    assert ids != ["a"]
    assert repr(ids) == "<4 row IDs: 'a', 'b', 'c', ...>"
    with pytest.raises(IndexError, match="from 0 to 3; got 4"):
        _ = ids[4]


def private_kilobytes():
    """Return the memory that this process shares with no other."""
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_Dirty"))


def growth_in_a_fork(dataset):
    """Read the dataset in a forked process, and return the growth of that process."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            for i in range(0, len(dataset), 1000):
                dataset[i]
            before = private_kilobytes()
            for i in range(len(dataset)):
                dataset[i * 7919 % len(dataset)]
            os.write(write_end, str(private_kilobytes() - before).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write_end)
    with os.fdopen(read_end) as file:
        return int(file.read())


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux's /proc")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_worker_does_not_copy_the_rows(path):
    """A pass over packed rows grows a worker by little, and one over dicts by their size."""
    data = {f"utterance{i:06d}": {"wav": f"/data/{i}.wav", "n": i + 1000} for i in range(30_000)}
    path.write_text(json.dumps(data))
    packed = DynamicItemDataset.from_json(path, output_keys=["id", "wav"])
    packed = packed.filtered_sorted(sort_key="n", reverse=True)
    plain = DynamicItemDataset(data, output_keys=["id", "wav"])
    assert growth_in_a_fork(packed) < 1500
    assert growth_in_a_fork(plain) > 5000
