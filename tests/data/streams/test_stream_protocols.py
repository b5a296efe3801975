"""Streams of every protocol, in a loop that never calls set_epoch, killed and resumed."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import stream_kinds as kinds
from data_helpers import USES_WORKERS, saved_state, state_after
from stream_kinds import assert_resumes_everywhere, make_loader, numbers, passes_of
from torch.utils.data import DataLoader, IterableDataset

from brain_data import ResumableLoader, SaveableDataLoader

pytestmark = USES_WORKERS

ALL_KINDS = pytest.mark.parametrize(
    "kind", [*kinds.KINDS, kinds.CountsSamples], ids=lambda kind: kind.__name__
)


def maker(kind: Any, workers: int, *, persistent: bool) -> Any:
    return lambda: make_loader(kind, workers, persistent=persistent)


@pytest.mark.parametrize(
    "kind", [*kinds.KINDS, kinds.CountsSamples], ids=lambda kind: kind.__name__
)
def test_a_stream_resumes_in_every_pass_and_at_their_ends(kind: Any) -> None:
    """In one process: what is left is equal, pass by pass."""
    assert assert_resumes_everywhere(maker(kind, 0, persistent=False)) > 150


@pytest.mark.parametrize("persistent", [False, True], ids=["new workers", "persistent workers"])
def test_a_stream_with_workers_resumes_as_it_would_have_continued(persistent: bool) -> None:
    """Persistent workers count their passes; new workers begin as the main process's dataset."""
    make = maker(kinds.CountsPasses, 2, persistent=persistent)
    passes, states = passes_of(make)
    assert (passes[0] != passes[1]) == persistent
    last = len(passes[0])
    for place in ((0, last, True), (0, last, False), (1, 2, False)):
        left = kinds.expected(passes, place)
        assert kinds.resumed(make, states[place], place) == left, place


@pytest.mark.parametrize("persistent", [False, True], ids=["new workers", "persistent workers"])
def test_a_worker_without_a_row_changes_nothing(persistent: bool) -> None:
    """It is at its end from the beginning."""
    make = maker(kinds.OneWorkerIsEmpty, 2, persistent=persistent)
    passes, states = passes_of(make)
    assert len(passes[0]) == 6
    for place in ((0, 2, False), (1, 0, False), (1, 6, False)):
        assert kinds.resumed(make, states[place], place) == kinds.expected(passes, place), place


def test_a_state_that_workers_cannot_load_is_replaced_by_reading_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Hugging Face's shuffled streams raise an IndexError in each of two workers."""
    make = maker(kinds.StateRaises, 2, persistent=False)
    passes, states = passes_of(make)
    assert kinds.resumed(make, states[1, 2, False], (1, 2, False)) == kinds.expected(
        passes, (1, 2, False)
    )
    assert caplog.text.count("its first 2 batches are read again") == 1


@pytest.mark.long
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize(
    "kind", [*kinds.KINDS, kinds.CountsSamples], ids=lambda kind: kind.__name__
)
def test_a_stream_with_two_workers_resumes_in_every_pass_and_at_their_ends(
    kind: Any, persistent: bool
) -> None:
    """Each worker has a part of the stream."""
    assert assert_resumes_everywhere(maker(kind, 2, persistent=persistent)) > 150


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (kinds.Plain, "Plain has no state_dict: its first 3 batches are read again"),
        (kinds.BufferNotSaved, "The state of BufferNotSaved cannot be used"),
        (kinds.StateCannotBeSaved, "has no state_dict whose result can be saved: its first 3"),
        (kinds.OtherSignature, "has no state_dict whose result can be saved: its first 3"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_reading_again_is_said_in_one_line(
    kind: Any, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The line names the stream and the number of batches."""
    state = state_after(make_loader(kind, 0, persistent=False), 3)
    again = make_loader(kind, 0, persistent=False)
    again.load_state_dict(state)
    caplog.clear()
    iter(again)
    assert words in caplog.text
    assert len(caplog.records) == 1


def test_the_rows_before_a_position_are_compared_over_several_small_batches() -> None:
    """A batch of one row may be equal by chance, where the state leaves a buffer out."""

    def make() -> Any:
        return make_loader(kinds.BufferNotSaved, 0, persistent=False, batch_size=1)

    passes, states = passes_of(make)
    for done in range(1, kinds.ROWS, 4):
        place = (0, done, False)
        assert kinds.resumed(make, states[place], place) == kinds.expected(passes, place)


def test_a_stateful_stream_reads_only_its_last_rows_again(caplog: pytest.LogCaptureFixture) -> None:
    """At least eight rows are compared with those before the restart."""
    caplog.set_level(logging.INFO)

    class Counted(kinds.CountsPasses):
        read = 0

        def __iter__(self) -> Any:
            for row in super().__iter__():
                Counted.read += 1
                yield row

    state = state_after(make_loader(Counted, 0, persistent=False), 9)
    again = make_loader(Counted, 0, persistent=False)
    again.load_state_dict(state)
    Counted.read = 0
    next(iter(again))
    assert Counted.read == 8 + 4
    assert "resumes at batch 9 from its own state" in caplog.text


def test_a_stream_that_counts_samples_of_all_workers_resumes_by_their_number() -> None:
    """It is asked with the number of samples, and nothing is read again."""
    loader = make_loader(kinds.CountsSamples, 0, persistent=False)
    state = state_after(loader, 3)
    assert state["counted"] == {"epoch": 0, "sample_in_epoch": 12}


def test_a_counted_state_that_cannot_be_loaded_is_replaced_by_reading_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The batches are those that were left."""

    class Refuses(kinds.CountsSamples):
        def load_state_dict(self, state: Any) -> None:
            raise ValueError("of another version")

    def make() -> Any:
        return make_loader(Refuses, 0, persistent=False)

    whole = [numbers(batch) for batch in make()]
    again = make()
    again.load_state_dict(state_after(make(), 3))
    assert [numbers(batch) for batch in again] == whole[3:]
    assert "of another version): its first 3 batches are read again" in caplog.text


def test_a_state_taken_again_right_after_loading_resumes_at_the_same_batch() -> None:
    """A run may be killed again before its first batch."""
    for kind in (kinds.CountsPasses, kinds.BothHaveState, kinds.OwnIterator, kinds.Plain):
        whole = [numbers(batch) for batch in make_loader(kind, 0, persistent=False)]
        state = state_after(make_loader(kind, 0, persistent=False), 3)
        for _ in range(2):
            again = make_loader(kind, 0, persistent=False)
            again.load_state_dict(state)
            iter(again)
            state = saved_state(again)
        last = make_loader(kind, 0, persistent=False)
        last.load_state_dict(state)
        assert [numbers(batch) for batch in last] == whole[3:]


def test_a_stream_of_a_loader_that_fit_wraps_resumes_by_the_same_protocols() -> None:
    """A plain DataLoader in a ResumableLoader."""
    for kind in (kinds.OwnIterator, kinds.BothHaveState, kinds.StateOfOtherTypes):

        def make(kind: Any = kind) -> Any:
            return ResumableLoader(DataLoader(kind(), batch_size=4))

        passes, states = passes_of(make)
        for place in kinds.places(passes):
            assert kinds.resumed(make, states[place], place) == kinds.expected(passes, place)


class ToldEpochs(kinds.Plain):
    """Remembers the epochs that it was told."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.told.append(epoch)


@pytest.mark.parametrize("wrap", [SaveableDataLoader, lambda d: ResumableLoader(DataLoader(d))])
def test_a_stream_is_told_the_epoch_only_by_a_loop_that_sets_it(wrap: Any) -> None:
    """Hugging Face's streams yield their shards in another order in another epoch."""
    counted, told = ToldEpochs(), ToldEpochs()
    loader = wrap(counted)
    for _ in range(3):
        list(loader)
    again = wrap(counted)
    again.load_state_dict(saved_state(loader))
    list(again)
    assert counted.told == []
    loader = wrap(told)
    loader.set_epoch(5)
    list(loader)
    assert set(told.told) == {5}
    again = wrap(ToldEpochs())
    again.load_state_dict(saved_state(loader))
    again.set_epoch(6)
    list(again)
    assert again.dataset.told[-1] == 6


def test_a_stream_longer_than_its_length_is_warned_of() -> None:
    """torch's loader does the same."""

    class Longer(IterableDataset[int]):
        def __len__(self) -> int:
            return 8

        def __iter__(self) -> Any:
            return iter(range(12))

    loader = SaveableDataLoader(Longer(), batch_size=4)
    assert len(loader) == 2
    with pytest.warns(UserWarning, match="was 2 batches, but it yields more"):
        assert len(list(loader)) == 3
