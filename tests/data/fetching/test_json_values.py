"""Values of other libraries' states, written as JSON."""

from __future__ import annotations

import collections
import json
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brain_data.fetching.json_values import from_json, to_json

KEYS = st.one_of(
    st.text(max_size=4), st.integers(), st.booleans(), st.none(), st.binary(max_size=3)
)
SCALARS = st.one_of(KEYS, st.floats(allow_nan=False), st.complex_numbers(allow_nan=False))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(KEYS, inner, max_size=3),
        st.sets(KEYS, max_size=3),
        st.frozensets(KEYS, max_size=3),
    ),
    max_leaves=8,
)


def returned(value: Any) -> Any:
    return from_json(json.loads(json.dumps(to_json(value), allow_nan=False)))


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_plain_values_come_back_as_they_were(value: Any) -> None:
    """Types, too: a tuple is no list, and 1 is not True."""
    assert repr_sorted(returned(value)) == repr_sorted(value)


def repr_sorted(value: Any) -> str:
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__name__}{sorted(map(repr, value))}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}{[repr_sorted(item) for item in value]}"
    if isinstance(value, dict):
        return f"dict{[(repr(key), repr_sorted(item)) for key, item in value.items()]}"
    return repr(value)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3),
        torch.arange(6).view(2, 3).t(),
        torch.zeros(0, 2),
        torch.tensor([1.5, -math.inf], dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.get_rng_state()[:40],
    ],
    ids=["scalar", "transposed", "empty", "bfloat16", "bool", "rng state"],
)
def test_tensors_come_back_with_their_type_and_shape(tensor: torch.Tensor) -> None:
    """Bit for bit."""
    back = returned({"x": [tensor]})["x"][0]
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.uint16).reshape(2, 3).T,
        np.array(["ä", "bc"]),
        np.zeros((0, 3)),
        np.float32(0.1),
        np.int64(-5),
        np.array(math.nan),
    ],
    ids=repr,
)
def test_arrays_come_back_with_their_type_and_shape(array: Any) -> None:
    """NumPy's numbers, too."""
    back = returned(array)
    assert type(back) is type(array)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_a_copy_is_returned() -> None:
    """A stream may go on editing the state that it has returned."""
    state = {"rows": [1, {"done": 2}]}
    saved = to_json(state)
    state["rows"][1]["done"] = 3  # type: ignore[index]
    assert saved == {"rows": [1, {"done": 2}]}


def test_dicts_of_other_types_become_dicts() -> None:
    """A state is loaded by its keys."""
    assert returned(collections.OrderedDict(a=1, b=collections.Counter("x"))) == {
        "a": 1,
        "b": {"x": 1},
    }


@pytest.mark.parametrize(
    "value", [object(), random.Random(1), lambda: 0, np.array([object()]), {"x": (iter(()),)}]
)
def test_other_objects_are_refused(value: Any) -> None:
    """The error names the type."""
    with pytest.raises(TypeError, match="plain values, tensors and arrays are required, got a"):
        to_json(value)
