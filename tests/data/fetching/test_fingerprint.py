"""Checksums of batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from brain_data import PaddedBatch
from brain_data.fetching.fingerprint import fingerprint


class Custom:
    """A batch of the user's type."""

    def __init__(self, value: Any) -> None:
        self.value = value


def padded(value: float) -> PaddedBatch:
    return PaddedBatch([{"id": "a", "x": torch.full((3,), value)}, {"id": "b", "x": torch.ones(1)}])


PAIRS: dict[str, tuple[Any, Any]] = {
    "tensors": (torch.tensor([1, 2]), torch.tensor([1, 3])),
    "dtypes": (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
    "shapes": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "large": (torch.arange(10_000), torch.arange(10_000) + 1),
    "transposed": (torch.arange(6).view(2, 3).t(), torch.arange(6).view(2, 3).t() + 1),
    "bfloat16": (torch.ones(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.bfloat16)),
    "arrays": (np.arange(3), np.arange(3) + 1),
    "strings": (["utt1", "utt2"], ["utt1", "utt3"]),
    "numbers": ([1, 2.5], [1, 2.25]),
    "mappings": ({"x": torch.ones(1)}, {"y": torch.ones(1)}),
    "long lists of rows": (list(range(100)), [*range(50), 99, *range(51, 100)]),
    "long lists of strings": (list("abcdefghijklmnop"), list("bbcdefghijklmnop")),
    "large integers": ([*range(20), 2**70], [*range(20), 2**71]),
    "nested": ([(torch.ones(1), {"a": [1]})], [(torch.ones(1), {"a": [2]})]),
    "objects": (Custom(1), Custom(2)),
    "padded batches": (padded(1.0), padded(2.0)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_different_batches_have_different_checksums_and_equal_ones_the_same(name: str) -> None:
    """Of any type that a loader yields."""
    first, second = PAIRS[name]
    assert fingerprint(first) == fingerprint(first)
    assert fingerprint(first) != fingerprint(second)


def test_a_checksum_continues_another_one() -> None:
    """The order of batches is part of it."""
    assert fingerprint(2, fingerprint(1)) != fingerprint(1, fingerprint(2))


@pytest.mark.parametrize(
    "value",
    [torch.zeros(0), torch.zeros(0, 3).t(), torch.zeros(2, 0, 2).transpose(0, 2), np.zeros(0), [],
     torch.zeros(2, device="meta"), torch.zeros(2, 2).to_sparse(), np.array(None), object()],
)  # fmt: skip
def test_any_value_has_a_checksum(value: Any) -> None:
    """Without elements, without a CPU tensor, or of an unknown type."""
    assert fingerprint(value) == fingerprint(value)
