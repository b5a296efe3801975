"""What each rank saves for itself."""

from __future__ import annotations

import random

import torch

from brain_core.loop.running_mean import LossMean
from brain_core.resume.rank_state import RankState


def test_generators_are_restored_once_by_restore_rng():
    """Numbers drawn between loading and restore_rng do not change the result."""
    state = RankState(LossMean).state_dict()
    drawn = (random.random(), torch.rand(1).item())
    other = RankState(LossMean)
    other.load_state_dict(state)
    assert other.holds_rng
    random.random()
    other.restore_rng()
    assert (random.random(), torch.rand(1).item()) == drawn
    assert not other.holds_rng
    other.restore_rng()
    assert random.random() != drawn[0]


def test_a_changed_environment_is_reported():
    """The report contains the name, the saved value and the current value."""
    here = {"torch": "2.13.0"}
    state = RankState(LossMean, lambda: dict(here))
    saved = state.state_dict()
    here["torch"] = "2.14.0"
    state.load_state_dict(saved)
    assert state.changed_environment() == ["torch 2.13.0 -> 2.14.0"]
