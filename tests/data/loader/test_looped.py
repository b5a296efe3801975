"""LoopedLoader: nominal epochs over a repeated loader."""

from __future__ import annotations

import json
from typing import Any

import pytest

from brain_data import LoopedLoader, ReproducibleRandomSampler, SaveableDataLoader, make_dataloader


def looped(length: int = 4) -> Any:
    sampler = ReproducibleRandomSampler(range(10), seed=3)
    return LoopedLoader(SaveableDataLoader(range(10), batch_size=3, sampler=sampler), length)


def batches(loader: Any, count: int) -> list[list[int]]:
    taken: list[list[int]] = []
    while len(taken) < count:
        taken += [batch.tolist() for batch in loader]
    return taken


def test_a_nominal_epoch_continues_the_pass_of_the_previous_one() -> None:
    """A new pass has a new order."""
    sampler = ReproducibleRandomSampler(range(10), seed=3)
    loader = SaveableDataLoader(range(10), batch_size=3, sampler=sampler)
    expected = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        expected += [batch.tolist() for batch in loader]
    assert batches(looped(6), 12) == expected
    assert expected[:4] != expected[4:8]


def test_it_counts_steps_and_samples() -> None:
    """There are four batches in a pass, of 3, 3, 3 and 1 rows."""
    loader = looped(6)
    assert len(loader) == 6
    batches(loader, 6)
    assert (loader.step, loader.total_steps, loader.total_samples, loader.passes) == (0, 6, 16, 1)


def test_a_batch_size_function_is_used() -> None:
    """SpeechBrain does not store it and fails."""
    loader = LoopedLoader([["a", "b"], ["c"]], 3, batchsize_fn=lambda _: 5)
    for _ in loader:
        pass
    assert loader.total_samples == 15


@pytest.mark.parametrize("done", range(11))
def test_the_position_in_the_data_is_saved(done: int, tmp_path: Any) -> None:
    """SpeechBrain saves the counters alone."""
    whole = batches(looped(), 16)
    loader = looped()
    seen: list[list[int]] = []
    while len(seen) < done:
        for batch in loader:
            seen.append(batch.tolist())
            if len(seen) == done:
                break
    loader.save(tmp_path / "loader.ckpt")
    numbers = (loader.step, loader.total_steps, loader.total_samples)
    assert tuple(map(int, (tmp_path / "loader.ckpt").read_text().split())) == numbers
    again = looped()
    again.load(tmp_path / "loader.ckpt", end_of_epoch=False)
    assert seen + batches(again, 16 - done) == whole
    assert len(json.dumps(loader.state_dict())) < 1000


def test_a_checkpoint_after_the_last_batch_of_an_epoch_resumes_at_its_end(
    tmp_path: Any,
) -> None:
    """A run may stop in the validation; a finished epoch starts the next (as in SpeechBrain)."""
    loader = looped()
    batches(loader, 4)
    loader.save(tmp_path / "loader.ckpt")
    validating, finished = looped(), looped()
    validating.load(tmp_path / "loader.ckpt", end_of_epoch=False)
    finished.load(tmp_path / "loader.ckpt", end_of_epoch=True)
    assert list(validating) == []
    assert len(list(validating)) == len(list(finished)) == 4


def test_speechbrains_three_numbers_are_read(tmp_path: Any) -> None:
    """They hold no position in the data."""
    (tmp_path / "x.ckpt").write_text("2\n6\n16\n")
    loader = looped()
    loader.load(tmp_path / "x.ckpt", end_of_epoch=False)
    assert (loader.step, loader.total_steps, loader.total_samples) == (2, 6, 16)
    assert len(list(loader)) == 2


def test_a_loader_without_batches_is_an_error() -> None:
    """It would be iterated forever."""
    with pytest.raises(RuntimeError, match="at least one batch is required"):
        next(iter(LoopedLoader([], 3)))


def test_a_saved_position_needs_a_loader_that_can_load_it() -> None:
    """A list cannot."""
    with pytest.raises(ValueError, match=r"load_state_dict is required.*got 'list'"):
        LoopedLoader([1], 3).load_state_dict(looped().state_dict())


def test_make_dataloader_loops_if_a_length_is_given() -> None:
    """The argument is SpeechBrain's."""
    loader = make_dataloader(range(10), looped_nominal_epoch=7, batch_size=2)
    assert isinstance(loader, LoopedLoader)
    assert len(list(loader)) == 7
