"""SaveableDataLoader in a loop of one's own that never calls set_epoch: passes are counted."""

from __future__ import annotations

import json
import logging
import random
from typing import Any

import pytest
import torch
from data_helpers import (
    USES_WORKERS,
    ShuffledByPython,
    listed,
    passes_with_states,
    saved_state,
    state_after,
)
from torch.utils.data import (
    Dataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from brain_data import ReproducibleRandomSampler, ResumableLoader, SaveableDataLoader

pytestmark = USES_WORKERS

ROWS = 14
PASSES = 4


class Noisy(Dataset[Any]):
    """Rows with a draw."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> int:
        return 1000 * row + int(torch.randint(1000, ()))


class PythonShuffle(ShuffledByPython):
    """Of these rows."""

    rows = ROWS


SAMPLERS: dict[str, Any] = {
    "in order": dict,
    "shuffle": lambda: {"shuffle": True},
    "generator": lambda: {"shuffle": True, "generator": torch.Generator().manual_seed(4)},
    "reproducible": lambda: {"sampler": ReproducibleRandomSampler(range(ROWS))},
    "weighted": lambda: {"sampler": WeightedRandomSampler([1.0] * ROWS, ROWS)},
    "subset": lambda: {"sampler": SubsetRandomSampler(range(ROWS))},
    "replacement": lambda: {"sampler": RandomSampler(range(ROWS), replacement=True)},
    "python": lambda: {"sampler": PythonShuffle()},
}


def make_loader(sampler: str, workers: int = 0, *, persistent: bool = False) -> SaveableDataLoader:
    return SaveableDataLoader(
        Noisy(),
        batch_size=4,
        num_workers=workers,
        persistent_workers=persistent,
        **SAMPLERS[sampler](),
    )


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)


def passes_of(make: Any) -> tuple[list[list[Any]], dict[Any, Any]]:
    """Return batches and states of a loop that begins with the same seed."""
    seed_all(1)
    return passes_with_states(make(), PASSES, torch.Tensor.tolist)


def assert_resumes_everywhere(make: Any) -> None:
    passes, states = passes_of(make)
    count = len(passes[0])
    for number, done, ended in (
        *((0, None, False), (0, 0, False), (0, 3, False), (0, count, False), (0, count, True)),
        *((1, 0, False), (1, 2, False), (1, count, False), (1, count, True), (2, count, False)),
    ):
        first = number + ended
        left = [passes[first][0 if ended else done or 0 :], *passes[first + 1 :]]
        for seed in (1, 2):  # the seed of the script as before, or what other code has drawn
            seed_all(seed)
            loader = make()
            loader.load_state_dict(states[number, done, ended])
            resumed = [listed(loader) for _ in range(PASSES - first)]
            assert resumed == left, (number, done, ended, seed)


@pytest.mark.parametrize("sampler", ["shuffle", "generator", "python"])
def test_a_loop_that_restores_nothing_else_resumes_in_every_pass(sampler: str) -> None:
    """Two passes, a save and two passes in a new loader equal four passes, shuffled ones too."""
    assert_resumes_everywhere(lambda: make_loader(sampler))


@pytest.mark.long
@pytest.mark.parametrize(
    ("workers", "persistent"),
    [(0, False), (2, False), (2, True)],
    ids=["no workers", "new workers", "persistent workers"],
)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_loop_over_any_sampler_resumes_in_every_pass(
    sampler: str, workers: int, persistent: bool
) -> None:
    """Without workers, with new ones, and with workers that persist."""
    assert_resumes_everywhere(lambda: make_loader(sampler, workers, persistent=persistent))


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_that_persist_do_not_change_the_order_after_a_restart(persistent: bool) -> None:
    """torch draws a base seed for new workers only; a restart starts new ones."""

    def make() -> Any:
        return make_loader("shuffle", 1, persistent=persistent)

    passes, states = passes_of(make)
    loader = make()
    loader.load_state_dict(states[1, len(passes[0]), True])
    assert [listed(loader), listed(loader)] == passes[2:]


@pytest.mark.parametrize("sampler", ["shuffle", "subset"])
@pytest.mark.parametrize("restored", ["before", "after"])
def test_a_loop_that_restores_the_generators_gets_its_own_draws(
    sampler: str, restored: str
) -> None:
    """What training draws decides the later orders, as without a restart."""
    seed_all(1)
    loader = make_loader(sampler)
    batches = iter(loader)
    next(batches)
    torch.rand(5)
    state, generators = saved_state(loader), (torch.get_rng_state(), random.getstate())
    left = [listed(batches)]
    torch.rand(7)
    left.append(listed(loader))

    seed_all(2)
    again = make_loader(sampler)
    again.load_state_dict(state)
    if restored == "before":
        # What iter() draws for a resumed pass changes the generators: restore them after it.
        iter(again)
        again.load_state_dict(state)
    batches = iter(again)
    torch.set_rng_state(generators[0])
    random.setstate(generators[1])
    resumed = [listed(batches)]
    torch.rand(7)
    resumed.append(listed(again))
    assert resumed == left


def test_a_loop_that_sets_the_epoch_saves_no_generators_for_torchs_shuffling() -> None:
    """Its state stays small; the seed that was drawn for the pass is part of it."""
    loader = make_loader("shuffle")
    loader.set_epoch(1)
    state = state_after(loader, 2)
    assert "draws" not in state
    assert len(json.dumps(state)) < 1000


def test_the_state_at_the_end_of_a_pass_is_the_beginning_of_the_next() -> None:
    """Loaded, it gives no empty pass; the state before the end was seen gives an empty rest."""
    for sampler in SAMPLERS:
        loader = make_loader(sampler)
        count = len(loader)
        behind_last, at_end = state_after(loader, count), None
        assert len(listed(loader)) == count
        at_end = saved_state(loader)
        again = make_loader(sampler)
        again.load_state_dict(behind_last)
        assert [len(listed(again)), len(listed(again))] == [0, count]
        again = make_loader(sampler)
        again.load_state_dict(at_end)
        assert len(listed(again)) == count


class Cuts(Dataset[Any]):
    """Is indexed by cuts and has no length, as lhotse's datasets are."""

    def __getitem__(self, cuts: list[str]) -> list[str]:
        return [f"{cut}:{int(torch.randint(1000, ()))}" for cut in cuts]


class CutSampler(Sampler[list[str]]):
    """Yields batches of cuts by seed and epoch, and has no length."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Any:
        cuts = [f"cut{number}" for number in range(30)]
        random.Random(self.epoch).shuffle(cuts)
        return iter([cuts[first : first + 4] for first in range(0, 30, 4)])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_without_a_length_is_saved_and_resumed(workers: int) -> None:
    """Its rows are whatever the sampler yields."""

    def make() -> Any:
        return SaveableDataLoader(
            Cuts(), batch_size=None, sampler=CutSampler(), num_workers=workers
        )

    loader = make()
    passes, states = [], []
    for epoch in range(2):
        loader.set_epoch(epoch)
        passes.append(list(loader) if epoch == 0 else [])
    batches = iter(loader)
    for batch in batches:
        passes[1].append(batch)
        states.append(saved_state(loader))
    again = make()
    again.load_state_dict(states[2])
    again.set_epoch(1)
    assert list(again) == passes[1][3:]
    assert passes[0] != passes[1]


def test_a_worker_init_fn_is_said_once_to_be_followed_by_other_seeds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What it seeds has no effect on what rows draw; everything else that it does has."""
    caplog.set_level(logging.INFO)
    loaders = [
        SaveableDataLoader(Noisy(), batch_size=4, num_workers=1, worker_init_fn=function)
        for function in (None, torch.manual_seed)
    ]
    assert caplog.text.count("worker_init_fn is called in each worker, but") == 1
    batches = [listed(loader) for loader in loaders for _ in range(2)]
    assert batches[0] == batches[2]
    assert caplog.text.count("worker_init_fn") == 1
    caplog.clear()
    ResumableLoader(
        torch.utils.data.DataLoader(Noisy(), num_workers=1, worker_init_fn=torch.manual_seed)
    )
    assert "worker_init_fn is called in each worker, but" in caplog.text


def test_a_seed_fits_into_a_tensor() -> None:
    """A dataset may make a tensor of torch.initial_seed(), for each row."""

    class Seeds(Dataset[Any]):
        def __len__(self) -> int:
            return 50

        def __getitem__(self, row: int) -> Any:
            return torch.tensor(torch.initial_seed())

    seeds = torch.cat(list(SaveableDataLoader(Seeds(), batch_size=1)))
    assert len(seeds.unique()) == 50
    assert (seeds >= 0).all()


def test_the_class_takes_the_type_of_its_rows_in_an_annotation() -> None:
    """As torch's DataLoader does."""

    def train(loader: SaveableDataLoader[int]) -> None:
        pass

    assert "SaveableDataLoader[int]" in str(train.__annotations__["loader"])
    assert SaveableDataLoader[int].__origin__ is SaveableDataLoader


def test_options_of_torchdatas_loader_are_refused_with_advice() -> None:
    """Otherwise torch's error would say that the argument is unexpected."""
    with pytest.raises(TypeError, match=r"torchdata's StatefulDataLoader, got 5: leave it out"):
        SaveableDataLoader(range(3), snapshot_every_n_steps=5)


def test_a_state_of_torchdatas_loader_is_refused() -> None:
    """Its layout is another one."""
    with pytest.raises(ValueError, match="a loader's state of format 1 is required, got None"):
        SaveableDataLoader(range(3)).load_state_dict({"_snapshot": {"_snapshot_step": 2}})


def test_the_state_of_a_loader_that_was_not_iterated_is_its_beginning() -> None:
    """It can be saved before training begins."""
    for sampler in SAMPLERS:
        seed_all(1)
        loader = make_loader(sampler)
        state = saved_state(loader)
        whole = listed(loader)
        again = make_loader(sampler)
        again.load_state_dict(state)
        assert listed(again) == whole


def test_a_map_style_dataset_is_not_asked_for_a_state() -> None:
    """A row depends on its number, the epoch and its place only."""

    class Stateful(Noisy):
        def state_dict(self) -> Any:
            raise AssertionError

        load_state_dict = state_dict

    loader = SaveableDataLoader(Stateful(), batch_size=4)
    batches = iter(loader)
    next(batches)
    state, left = saved_state(loader), listed(batches)
    again = SaveableDataLoader(Stateful(), batch_size=4)
    again.load_state_dict(state)
    assert listed(again) == left


def test_a_sampler_is_not_asked_for_a_state_and_its_order_is_compared() -> None:
    """Its counters are restored; an order that differs nevertheless is an error."""

    class Counts(PythonShuffle):
        def __init__(self) -> None:
            self.passes = 0

        def __iter__(self) -> Any:
            self.passes += 1
            return iter(random.Random(self.passes).sample(range(ROWS), ROWS))

        def state_dict(self) -> Any:
            raise AssertionError

    class Clock(Counts):
        def __iter__(self) -> Any:
            return iter(random.SystemRandom().sample(range(ROWS), ROWS))

    for kind in (Counts, Clock):
        loader = SaveableDataLoader(range(ROWS), batch_size=4, sampler=kind())
        list(loader)
        batches = iter(loader)
        next(batches)
        state, left = saved_state(loader), listed(batches)
        again = SaveableDataLoader(range(ROWS), batch_size=4, sampler=kind())
        again.load_state_dict(state)
        if kind is Counts:
            assert listed(again) == left
        else:
            with pytest.raises(ValueError, match="checksum of the sampler's order was"):
                iter(again)
