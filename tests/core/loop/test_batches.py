"""Batches that can tell whether another one follows."""

from __future__ import annotations

import pytest

from brain_core.loop.batches import Batches


def test_asking_for_another_batch_loses_none():
    """has_next fetches, and what it fetched comes next."""
    batches = Batches([1, 2, 3])
    seen = [(batch, batches.has_next(), batches.has_next()) for batch in batches]
    assert seen == [(1, True, True), (2, True, True), (3, False, False)]


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 9])
def test_a_limit_looks_like_the_end_of_the_data(limit):
    """Debug mode's last window is short for the same reason as an epoch's."""
    batches = Batches(range(3), limit)
    assert batches.has_next() == (limit > 0)
    assert list(batches) == list(range(min(3, limit)))
    assert not batches.has_next()


def test_skipping_past_the_end_leaves_nothing():
    """A shorter loader than the one that was saved."""
    batches = Batches(range(3))
    batches.skip(5)
    assert list(batches) == []
