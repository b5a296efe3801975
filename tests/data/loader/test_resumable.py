"""ResumableLoader in one process: any loader goes on where it was, or says that it cannot."""

from __future__ import annotations

import json
import logging
import random
import time
from typing import Any

import pytest
import torch
from data_helpers import USES_WORKERS, keep, listed, saved_state
from loader_kinds import (
    EPOCHS,
    KINDS,
    ROWS,
    KeepsItsOrder,
    NoisyRows,
    OneByOne,
    Stream,
    of_rows,
    resume,
    seed_everything,
    seeded,
    train,
    train_step,
)
from torch.utils.data import DataLoader, IterableDataset, Sampler

from brain_data import ResumableLoader, ResumeError

pytestmark = USES_WORKERS


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_in_any_epoch_resumes_with_the_batches_left(kind: str, workers: int) -> None:
    """Batches, their noise and what training draws equal those of the undisturbed run."""
    seed_everything(1)
    whole, states = train(kind, workers, after=2)
    for epoch in EPOCHS:
        assert resume(kind, workers, epoch, states[epoch]) == whole[states[epoch][2] :]


@pytest.mark.parametrize("kind", ["shuffle", "draws one by one", "stream", "wrapper", "own state"])
def test_a_state_after_the_last_batch_leaves_an_empty_rest_and_then_the_next_epoch(
    kind: str,
) -> None:
    """No epoch is lost or repeated."""
    seed_everything(1)
    _, states = train(kind, 0, after=1)
    loader = ResumableLoader(KINDS[kind](0))
    batches = len(list(loader))
    seed_everything(1)
    whole, states = train(kind, 0, after=batches)
    assert resume(kind, 0, 1, states[1]) == whole[batches:]


@pytest.mark.parametrize("kind", ["shuffle", "counts passes", "stream", "wrapper", "own state"])
@pytest.mark.parametrize("workers", [0, 2])
def test_passes_are_counted_without_set_epoch(kind: str, workers: int) -> None:
    """Two passes, a save and two passes in a new loader equal four passes."""

    def passes(loader: Any, count: int) -> list[Any]:
        return [[(batch, train_step()) for batch in loader] for _ in range(count)]

    seed_everything(1)
    whole = passes(ResumableLoader(KINDS[kind](workers)), 4)
    seed_everything(1)
    loader = ResumableLoader(KINDS[kind](workers))
    first = passes(loader, 2)
    again = ResumableLoader(KINDS[kind](workers))
    again.load_state_dict(saved_state(loader))
    assert first + passes(again, 2) == whole


def test_a_fresh_pass_gives_torchs_order_and_draws_what_torch_draws() -> None:
    """For loaders that draw nothing while they fetch, a plain loop has the same bits."""
    for make in (
        lambda: DataLoader(range(ROWS), batch_size=4, shuffle=True),
        lambda: DataLoader(range(ROWS), batch_size=4, shuffle=True, generator=seeded(3)),
        lambda: DataLoader(range(ROWS), sampler=OneByOne(), batch_size=ROWS),
        lambda: DataLoader(range(ROWS), batch_size=4),
    ):
        runs = []
        for wrap in (lambda loader: loader, ResumableLoader):
            seed_everything(1)
            loader = wrap(make())
            runs.append([(batch.tolist(), train_step()) for _ in EPOCHS for batch in loader])
        assert runs[0] == runs[1]


def test_only_row_numbers_are_found_again() -> None:
    """Resuming reads no row of a batch before the position."""
    fetched: list[int] = []

    class Rows(NoisyRows):
        def __getitem__(self, row: int) -> Any:
            fetched.append(row)
            return super().__getitem__(row)

    def make() -> Any:
        return ResumableLoader(DataLoader(Rows(), batch_size=4, shuffle=True, collate_fn=keep))

    loader = make()
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    state = saved_state(loader)
    fetched.clear()
    again = make()
    again.load_state_dict(state)
    list(again)
    assert len(fetched) == ROWS - 12


def test_iterating_leaves_the_generators_as_they_are_on_resuming() -> None:
    """They may be restored before or after."""
    loader = ResumableLoader(KINDS["shuffle"](0))
    next(iter(loader))
    again = ResumableLoader(KINDS["shuffle"](0))
    again.load_state_dict(loader.state_dict())
    seed_everything(7)
    iter(again)
    drawn = train_step()
    seed_everything(7)
    assert drawn == train_step()


class ClockShuffle(IterableDataset[int]):
    """Seeds its shuffling by the clock, as webdataset does."""

    def __iter__(self) -> Any:
        rows = list(range(ROWS))
        random.Random(time.perf_counter_ns()).shuffle(rows)
        yield from rows


class ClockSampler(Sampler[int]):
    """Seeds its shuffling by the clock."""

    def __init__(self) -> None:
        pass

    def __len__(self) -> int:
        return ROWS

    def __iter__(self) -> Any:
        rows = list(range(ROWS))
        random.Random(time.perf_counter_ns()).shuffle(rows)
        return iter(rows)


class ClockLoader(ClockSampler):
    """An iterable that is not torch's loader."""


UNREPEATABLE: dict[str, Any] = {
    "stream": lambda: DataLoader(ClockShuffle(), batch_size=4),
    "stream with workers": lambda: DataLoader(ClockShuffle(), batch_size=4, num_workers=2),
    "sampler": lambda: DataLoader(range(ROWS), batch_size=4, sampler=ClockSampler()),
    "iterable": ClockLoader,
}


@pytest.mark.parametrize("name", UNREPEATABLE)
def test_an_order_that_cannot_be_repeated_is_refused_before_the_first_batch(name: str) -> None:
    """The error names the option that keeps the position."""
    loader = ResumableLoader(UNREPEATABLE[name]())
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    again = ResumableLoader(UNREPEATABLE[name]())
    again.load_state_dict(saved_state(loader))
    with pytest.raises(ResumeError, match=r"are not those|yields other rows.*--resume_anyway"):
        iter(again)


@pytest.mark.parametrize("name", UNREPEATABLE)
def test_resume_anyway_keeps_the_position_and_warns(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows may be repeated then, and the number of batches is right."""
    loader = ResumableLoader(UNREPEATABLE[name]())
    total = len(list(loader))
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    again = ResumableLoader(UNREPEATABLE[name](), resume_anyway=True)
    again.load_state_dict(saved_state(loader))
    assert len(list(again)) == total - 3
    assert "Resuming anyway" in caplog.text


def test_changed_data_or_settings_are_refused_by_name() -> None:
    """The error shows the saved and the present value."""
    loader = ResumableLoader(DataLoader(range(ROWS), batch_size=4, shuffle=True))
    next(iter(loader))
    for other, words in (
        (DataLoader(range(ROWS + 1), batch_size=4, shuffle=True), "rows was 22 and is 23"),
        (DataLoader(range(ROWS), batch_size=5, shuffle=True), "batch_size was 4 and is 5"),
        (DataLoader(range(ROWS), batch_size=4), "sampler was 'RandomSampler'"),
        ([1, 2], "state of a IterableSource of format 1 is required, got 'RowSource'"),
    ):
        with pytest.raises(ResumeError, match=words):
            ResumableLoader(other).load_state_dict(saved_state(loader))


def test_another_number_of_workers_resumes_a_map_style_loader() -> None:
    """Rows and noise do not depend on it."""
    seed_everything(1)
    whole, states = train("shuffle", 0, after=2)
    for workers in (1, 3):
        assert resume("shuffle", workers, 2, states[2]) == whole[states[2][2] :]


class RaisesInState(KeepsItsOrder):
    """Its state_dict requires arguments."""

    def state_dict(self, num_samples: int, from_beginning: bool) -> Any:
        raise AssertionError


class HoldsObjects(KeepsItsOrder):
    """Its state holds an object that no safe loader restores."""

    def state_dict(self) -> Any:
        return {"position": self.position, "order": random.Random(3)}


class RefusesState(KeepsItsOrder):
    """Its load_state_dict raises an error."""

    def load_state_dict(self, state: Any) -> None:
        raise IndexError("list index out of range")


@pytest.mark.parametrize("kind", [RaisesInState, HoldsObjects, RefusesState])
def test_a_state_that_cannot_be_used_is_replaced_by_reading_again(
    kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """No state of a loader's ends a run; the log says so in one line."""
    loader = ResumableLoader(kind())
    batches = iter(loader)
    whole = [next(batches) for _ in range(2)]
    state = saved_state(loader)
    whole += list(batches)
    again = ResumableLoader(kind())
    again.load_state_dict(state)
    assert list(again) == whole[2:]
    assert "cannot be" in caplog.text
    assert "its first 2 batches are read again" in caplog.text


def test_a_loader_that_ends_while_it_is_read_again_is_refused() -> None:
    """Fewer batches than before are not the same batches."""
    loader = ResumableLoader([[1], [2], [3]])
    batches = iter(loader)
    for _ in range(2):
        next(batches)
    again = ResumableLoader([[1]])
    again.load_state_dict(saved_state(loader))
    with pytest.raises(ResumeError, match="first 2 batches of list were read again"):
        iter(again)


def test_a_subclass_of_torchs_loader_with_an_iteration_of_its_own_is_read_again() -> None:
    """Its batches are what it yields, not what its sampler says."""

    class Doubled(DataLoader[Any]):
        def __iter__(self) -> Any:
            for batch in super().__iter__():
                yield batch * 2

    def make() -> Any:
        return ResumableLoader(Doubled(range(8), batch_size=2, shuffle=True))

    loader = make()
    batches = iter(loader)
    next(batches)
    again = make()
    again.load_state_dict(saved_state(loader))
    assert listed(again) == listed(batches)


def test_a_dataset_with_a_generator_of_its_own_resumes_exactly_without_workers() -> None:
    """The generator is an attribute of the dataset."""

    class Rows(NoisyRows):
        def __init__(self) -> None:
            self.rng = random.Random(4)

        def __getitem__(self, row: int) -> list[float]:
            return [row, self.rng.random()]

    def make() -> Any:
        return ResumableLoader(DataLoader(Rows(), batch_size=4, shuffle=True, collate_fn=keep))

    loader = make()
    batches = iter(loader)
    next(batches)
    state = saved_state(loader)
    again = make()
    again.load_state_dict(state)
    assert list(again) == list(batches)


def test_the_state_is_json_of_some_kilobytes_and_survives_a_save_right_after_loading() -> None:
    """Any checkpointer can hold it."""
    loader = ResumableLoader(KINDS["generator"](0))
    next(iter(loader))
    state = saved_state(loader)
    assert len(json.dumps(state)) < 30_000
    again = ResumableLoader(KINDS["generator"](0))
    again.load_state_dict(state)
    assert again.state_dict() == state


def test_a_position_is_kept_for_its_own_epoch_and_dropped_for_another() -> None:
    """Setting the epoch that a run resumes in is part of the loop."""
    loader = ResumableLoader(DataLoader(range(8), batch_size=2))
    loader.set_epoch(3)
    next(iter(loader))
    for epoch, left in ((3, 3), (4, 4)):
        again = ResumableLoader(DataLoader(range(8), batch_size=2))
        again.load_state_dict(saved_state(loader))
        again.set_epoch(epoch)
        assert len(list(again)) == left


def test_batches_are_copied_to_a_device() -> None:
    """For each kind of loader."""
    for loader in (
        DataLoader(torch.arange(4), batch_size=2),
        DataLoader(Stream(), batch_size=2, collate_fn=torch.tensor),
        [torch.zeros(1)],
    ):
        assert {b.device.type for b in ResumableLoader(loader, device="meta")} == {"meta"}


def test_attributes_and_length_are_those_of_the_wrapped_loader() -> None:
    """Code that reads a DataLoader can read this class."""
    loader = ResumableLoader(DataLoader(range(10), batch_size=4))
    assert (len(loader), loader.batch_size, len(loader.dataset)) == (3, 4, 10)
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        _ = loader.colour
    with pytest.raises(TypeError):
        len(ResumableLoader(iter([1])))


def test_reading_again_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """It may take long."""
    caplog.set_level(logging.INFO)
    loader = ResumableLoader([[1], [2]])
    next(iter(loader))
    again = ResumableLoader([[1], [2]])
    again.load_state_dict(saved_state(loader))
    assert list(again) == [[2]]
    assert "list has no state that can be loaded: its first 1 batches are read again" in caplog.text


def test_workers_persist_from_pass_to_pass() -> None:
    """The user's option holds."""

    class Pids(NoisyRows):
        def __getitem__(self, row: int) -> Any:
            import os

            return os.getpid()

    loader = ResumableLoader(
        DataLoader(Pids(), batch_size=4, num_workers=1, persistent_workers=True)
    )
    assert len({pid for _ in range(2) for batch in loader for pid in batch.tolist()}) == 1
    assert of_rows(0).num_workers == 0
