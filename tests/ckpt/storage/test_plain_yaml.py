"""Plain meta is written and read without a YAML library, and as one would."""

from __future__ import annotations

import math

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from brain_ckpt.storage.meta import dump_meta, load_meta
from brain_ckpt.storage.plain_yaml import dump_plain, load_plain

AMBIGUOUS = [
    *("yes", "no", "y", "n", "Y", "N", "on", "Off", "TRUE", "True", "null", "Null", "~", "nan"),
    *("inf", ".nan", ".inf", "e5", "1e5", "a.b", "a-b", "---", "_", "_1", "x.", "x-", "0x1", "0o7"),
    *("012", "1_000", "1:30", "NaN", "2026-11-28", "=", "<<"),
]
words = st.one_of(
    st.sampled_from(AMBIGUOUS),
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,11}", fullmatch=True),
    st.text(max_size=6),
)
keys = st.one_of(
    st.from_regex(r"[a-z_][a-z0-9_-]{0,7}", fullmatch=True), st.sampled_from(AMBIGUOUS)
)
numbers = st.one_of(st.integers(), st.floats(), st.floats(1e15, 1e25), st.booleans(), st.none())
scalars = st.one_of(numbers, words)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=12,
)
texts = st.lists(
    st.builds(
        lambda key, value: f"{key}: {value}",
        keys,
        st.one_of(
            words,
            numbers.map(lambda value: yaml.safe_dump(value).split("\n")[0]),
            st.from_regex(r"[-+]?[0-9_.e+-]{1,8}", fullmatch=True),
        ),
    ),
    min_size=1,
    max_size=4,
).map(lambda lines: "\n".join(lines) + "\n")


@settings(max_examples=100)
@given(st.dictionaries(keys, values, max_size=5))
def test_what_is_written_is_what_pyyaml_writes(meta) -> None:
    """Byte for byte, or it is left to PyYAML."""
    assert dump_plain(meta) in (None, yaml.safe_dump(meta, allow_unicode=True))


@settings(max_examples=100)
@given(texts)
def test_what_is_read_is_what_pyyaml_reads(text) -> None:
    """Value and type, or it is left to PyYAML."""
    found = load_plain(text)
    if found is not None:
        assert repr(found) == repr(yaml.safe_load(text))


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{3}_[a-z-]{0,7}", fullmatch=True),
        st.one_of(
            st.integers(-(10**17), 10**17), st.floats(), st.booleans(), st.none(), st.just("word")
        ),
        min_size=1,
    )
)
def test_the_meta_of_a_usual_save_needs_no_yaml_library(meta) -> None:
    """Numbers, booleans, None and words come back as they were."""
    text = dump_plain(meta)
    assert text is not None
    assert repr(load_plain(text)) == repr(dict(sorted(meta.items())))


def test_metas_of_both_ways_are_read_alike() -> None:
    """What is not plain, or was written by another program, goes to the library."""
    plain = {"unixtime": 1.5, "loss": math.inf, "epoch": 3}
    assert load_meta(dump_meta(plain)[0], "here") == plain
    other = {**plain, "note": "two words: yes", "list": [1, [2.5, {"a": "b c"}]]}
    assert load_meta(dump_meta(other)[0], "here") == other
    assert load_meta(b"{unixtime: 1.5, loss: 0x10}", "here") == {"unixtime": 1.5, "loss": 16}
    assert dump_plain({"list": [[1, 2], [], {"a": {}}]}) == "list:\n- - 1\n  - 2\n- []\n- a: {}\n"
