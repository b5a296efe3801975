"""The batches of a pass, and the check whether another batch follows."""

from __future__ import annotations

import pytest

from brain_core.loop.batches import Batches


def test_has_next_loses_no_batch():
    """A batch that `has_next` has fetched is the next one of the iterator."""
    batches = Batches([1, 2, 3])
    seen = [(batch, batches.has_next(), batches.has_next()) for batch in batches]
    assert seen == [(1, True, True), (2, True, True), (3, False, False)]


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 9])
def test_a_limit_ends_the_batches(limit):
    """With a limit, the iterator and `has_next` behave as at the end of the data."""
    batches = Batches(range(3), limit)
    assert batches.has_next() == (limit > 0)
    assert list(batches) == list(range(min(3, limit)))
    assert not batches.has_next()


def test_skipping_past_the_end_yields_no_batch():
    """Skipping more batches than the loader has raises no error."""
    batches = Batches(range(3))
    batches.skip(5)
    assert list(batches) == []
