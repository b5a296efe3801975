"""Seeding."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

from brain_core import seed_everything
from brain_core.options.seed import seed_per_rank


def draw():
    """Draw from every generator."""
    return random.random(), float(np.random.rand()), float(torch.rand(()))


@pytest.fixture(autouse=True)
def _seed_put_back(monkeypatch):
    monkeypatch.setenv("SB_GLOBAL_SEED", "")


def test_the_same_seed_gives_the_same_numbers_everywhere():
    """Python, NumPy and torch."""
    assert seed_everything(11) == 11
    first = draw()
    seed_everything(11)
    assert draw() == first
    assert os.environ["SB_GLOBAL_SEED"] == "11"


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed):
    """SpeechBrain would take 0 instead."""
    with pytest.raises(ValueError, match=f"between 0 and 4294967295, got {seed}"):
        seed_everything(seed)


def test_ranks_draw_apart_once_the_model_is_built():
    """Reference row: dropout and augmentation repeated over ranks."""
    seen = []
    for rank in range(3):
        seed_everything(5, verbose=False)
        seed_per_rank(rank)
        seen.append(draw())
    assert len(set(seen)) == 3
    seed_everything(5, verbose=False)
    assert draw() == seen[0]


def test_deterministic_asks_torch_for_deterministic_algorithms():
    """And can be taken back by the caller."""
    seed_everything(1, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(mode=False)
