"""Manifests in JSON and CSV: their content and their errors."""

import json
import re
import sys

import pytest

from brain_data import DynamicItemDataset, ManifestError, load_data_csv, load_data_json


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a manifest and returns its path."""

    def write_file(text, name="rows.csv"):
        path = tmp_path / name
        path.write_bytes(text.encode())
        return path

    return write_file


def test_json_strings_are_formatted_at_any_depth(write):
    """The example is SpeechBrain's."""
    text = '{"ex1": {"files": ["{R}/1.wav", {"a": "{R}/2.wav"}], "n": 1, "t": "{{x}}", "z": null}}'
    row = load_data_json(write(text), {"R": "/home"})["ex1"]
    assert row == {"files": ["/home/1.wav", {"a": "/home/2.wav"}], "n": 1, "t": "{x}", "z": None}


def test_csv_variables_are_replaced_and_durations_are_numbers(write):
    """The example is SpeechBrain's, with a quoted comma, spaces and a byte order mark."""
    text = '\ufeffID, duration, wav, words\nu1, 1.45, $root/u1.wav, "a, b"\n\nu2,2,$root.x,\n'
    data = load_data_csv(write(text), {"root": "/home", "root.x": "y"})
    assert data == {
        "u1": {"duration": 1.45, "wav": "/home/u1.wav", "words": "a, b"},
        "u2": {"duration": 2.0, "wav": "y", "words": ""},
    }


def test_datasets_are_made_of_csv_and_json(write):
    """The order of the arguments is SpeechBrain's."""
    csv = write("ID,wav\nu1,$R/a\n")
    js = write('{"u1": {"wav": "{R}/a"}}', "rows.json")
    for make, path in ((DynamicItemDataset.from_csv, csv), (DynamicItemDataset.from_json, js)):
        items = [{"func": len, "takes": "wav", "provides": "n"}]
        assert make(path, {"R": "/x"}, items, ["id", "wav", "n"])[0] == {
            "id": "u1",
            "wav": "/x/a",
            "n": 4,
        }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("wav,duration\na,1\n", r"must have a column 'ID'.*\['wav', 'duration'\]"),
        ("", r"must have a column 'ID'"),
        ("ID,wav,wav\na,b,c\n", "own name"),
        ("ID,wav,n\na,b,1\nc,d\n", r"line 3 \(ID 'c'\) has 2: it lacks \['n'\]"),
        ("ID,wav\na,b,c\n", r"line 2 \(ID 'a'\) has 3: too many by \['c'\]"),
        ("ID,wav\na,b\nc,d\na,e\n", "line 4 has 'a', and so has line 2"),
        ("ID,wav\na,b\n,c\n", "must have an ID; it is empty in .*rows.csv, line 3"),
        ("ID,wav\na,b\n  ,c\n", "is empty in .*rows.csv, line 3"),
        ("ID,duration\na,1.0\nb,long\n", r"line 3 \(ID 'b'\) has 'long'"),
        (
            "ID,wav\na,$rot/b\n",
            r"line 2 \(ID 'a', column 'wav'\).*needs 'rot' \(did you mean 'root'",
        ),
    ],
)
def test_an_error_in_a_csv_file_names_the_line(write, text, says):
    """A column or field is missing, an ID is not unique, or a number is invalid."""
    path = write(text)
    with pytest.raises(ManifestError, match=says) as caught:
        load_data_csv(path, {"root": "/x"})
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("lines_before", [0, 5000])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_csv_file_in_another_encoding_is_refused_with_its_line(tmp_path, lines_before, encoding):
    """A file is decoded in blocks, so the line is not the one that was read last."""
    path = tmp_path / "rows.csv"
    rows = [f"u{number},x.wav" for number in range(lines_before)]
    path.write_bytes("\n".join(["ID,wav", *rows, "last,Tür.wav", "end,y"]).encode(encoding))
    line, byte = (lines_before + 2, "fc") if encoding == "latin-1" else (1, "ff")
    for read in (load_data_csv, DynamicItemDataset.from_csv):
        with pytest.raises(
            ManifestError, match=rf"must be in UTF-8; .*rows.csv, line {line} has the byte 0x{byte}"
        ):
            read(path)


def test_a_field_that_csv_refuses_as_too_long_is_named_with_its_first_line(write):
    """A quotation mark that is not closed makes one field of all lines after it."""
    text = 'ID,words\na,b\nc,"not closed\n' + "d,some words\n" * 20_000
    for body in (text, f"ID,words\na,b\nc,{'x' * 140_000}\n"):
        with pytest.raises(
            ManifestError, match=r"at most 131072 characters; .*rows.csv, line 3 has a longer one"
        ):
            load_data_csv(write(body))


def test_a_null_byte_in_a_csv_file_is_named_with_its_line_or_read(write):
    """Python's csv module refuses it in versions before 3.11."""
    path = write("ID,words\na,b\nc,d\0e\n")
    if sys.version_info < (3, 11):
        with pytest.raises(ManifestError, match=r"rows.csv, line 3 must be a line of CSV"):
            load_data_csv(path)
    else:
        assert load_data_csv(path)["c"] == {"words": "d\0e"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1, 2]", "holds a list"),
        ('{"a": {"x": 1}, "b": [2]}', r"row 'b' of .* is \[2\] \(of type list\)"),
        ('{"a": {"x": 1}, "b": 3}', r"row 'b' of .* is 3 \(of type int\)"),
        ('{"a": {"x": 1},', "must be valid JSON"),
        ("", "must be valid JSON"),
        ('{"a": {"x": 1}, "a": {"x": 2}}', "has 'a' twice"),
        ('{"a": {"x": 1, "x": 2}}', "has 'x' twice"),
        (
            '{"a": {"wav": "{rot}/b"}}',
            r"row 'a' of .*, key 'wav'.*needs 'rot' \(did you mean 'root'",
        ),
        ('{"a": {"wav": "{0}"}}', "row 'a' of .*, key 'wav'"),
        ('{"a": {"wav": "{"}}', "double the braces"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_an_error_in_a_json_file_names_the_row(write, monkeypatch, text, says, packed):
    """A large file gives the same errors, at the latest when the row is accessed."""
    monkeypatch.setattr("brain_data.dataset.manifest_json.PACK_BYTES", 0 if packed else 2**40)
    path = write(text, "rows.json")
    with pytest.raises(ManifestError, match=says) as caught:
        DynamicItemDataset.from_json(path, {"root": "/x"}, output_keys=["id"])[0]
    assert str(path) in str(caught.value)


def test_a_missing_replacement_is_a_key_error_as_in_speechbrain(write):
    """Code that catches KeyError still works, and the message is not quoted twice."""
    with pytest.raises(KeyError) as caught:
        load_data_csv(write("ID,wav\na,$root/b\n"))
    assert str(caught.value).startswith("Each replacement")


@pytest.mark.parametrize("kind", ["CSV", "JSON"])
def test_a_missing_file_is_named_with_its_full_path_and_the_nearest_one(
    tmp_path, monkeypatch, kind
):
    """A relative path begins at the current directory, which the user may not expect."""
    monkeypatch.chdir(tmp_path)
    suffix = kind.lower()
    (tmp_path / f"train.{suffix}").touch()
    make = getattr(DynamicItemDataset, f"from_{suffix}")
    full = re.escape(str(tmp_path / f"tain.{suffix}"))
    message = (
        rf"A {kind} manifest must exist, got 'tain\.{suffix}', which is {full} \(did you mean "
    )
    with pytest.raises(
        FileNotFoundError, match=rf"{message}'train\.{suffix}'\?\): correct the path"
    ):
        make(f"tain.{suffix}")
    with pytest.raises(FileNotFoundError, match=r"nowhere/x'.*nowhere/x: correct the path"):
        make(tmp_path / "nowhere/x")


def test_the_caller_s_replacements_are_not_modified(write):
    """They are only read."""
    given = {"R": "/x"}
    load_data_json(write(json.dumps({"a": {"w": "{R}"}})), given)
    assert given == {"R": "/x"}
