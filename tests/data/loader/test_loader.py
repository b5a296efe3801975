"""SaveableDataLoader over map-style datasets: its position, its state, and its errors."""

from __future__ import annotations

import json
import random
from itertools import islice
from typing import Any

import pytest
import torch
from data_helpers import listed, loader_of_rank, state_after
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, SequentialSampler

from brain_data import (
    ConcatDatasetBatchSampler,
    DistributedSamplerWrapper,
    DynamicBatchSampler,
    ReproducibleRandomSampler,
    ReproducibleWeightedRandomSampler,
    SaveableDataLoader,
)


def shuffled(rows: int = 50, batch_size: int = 4, seed: int = 1, **kwargs: Any) -> Any:
    sampler = ReproducibleRandomSampler(range(rows), seed=seed)
    return SaveableDataLoader(range(rows), batch_size=batch_size, sampler=sampler, **kwargs)


SAMPLERS: dict[str, Any] = {
    "sequential": lambda: {"batch_size": 3},
    "random": lambda: {"batch_size": 3, "sampler": ReproducibleRandomSampler(range(40))},
    "drop last": lambda: {
        "batch_size": 3, "sampler": ReproducibleRandomSampler(range(40)), "drop_last": True,
    },
    "weighted": lambda: {
        "batch_size": 3,
        "sampler": ReproducibleWeightedRandomSampler(list(range(1, 41)), 30, replacement=True),
    },
    "dynamic": lambda: {
        "batch_sampler": DynamicBatchSampler(
            range(40), 60, num_buckets=4, lengths_list=list(range(1, 41))
        )
    },
    "concatenated": lambda: {
        "batch_sampler": ConcatDatasetBatchSampler(
            [ReproducibleRandomSampler(range(15)), ReproducibleRandomSampler(range(25))], [2, 3]
        )
    },
    "no batches": lambda: {"batch_size": None, "sampler": ReproducibleRandomSampler(range(40))},
    "lists as rows": lambda: {
        "batch_size": None,
        "sampler": BatchSampler(ReproducibleRandomSampler(range(40)), 4, drop_last=False),
    },
    "a list of batches": lambda: {
        "batch_sampler": [[3, 1], [2], [39, 0, 7], [5]]
    },
}  # fmt: skip


class Squares:
    """Rows that can be indexed by a number or by a list."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, row: Any) -> torch.Tensor:
        return torch.as_tensor(row) ** 2


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_pass_equals_torch_s_and_resumes_at_any_batch(name: str) -> None:
    """For every type of sampler, the rest after a restart equals the rest without one."""
    whole = [batch.tolist() for batch in DataLoader(Squares(), **SAMPLERS[name]())]
    assert listed(SaveableDataLoader(Squares(), **SAMPLERS[name]())) == whole
    for done in range(len(whole) + 1):
        state = state_after(SaveableDataLoader(Squares(), **SAMPLERS[name]()), done)
        again = SaveableDataLoader(Squares(), **SAMPLERS[name]())
        again.load_state_dict(state)
        assert listed(again) == whole[done:]
        assert listed(again) == whole
        assert len(json.dumps(state)) < 1000


def test_random_runs_take_every_row_once_and_steps_do_not_depend_on_the_ranks() -> None:
    """Loaders of 1 to 12 ranks, stopped and resumed, take the rows of one process step by step."""
    draw = random.Random(7)
    for _ in range(40):
        rows, size, epoch = draw.randint(30, 90), draw.randint(1, 4), draw.randrange(3)
        micro = -(-rows // size)
        position, steps, state = 0, {}, None
        while position < micro:
            fits = [w for w in (1, 2, 3, 4, 6, 12) if w <= rows % 12 or not rows % 12 or w == 1]
            world_size = draw.choice(fits)
            loaders = [loader_of_rank(r, world_size, rows, size) for r in range(world_size)]
            for loader in loaders:
                loader.set_epoch(epoch)
                if state is not None:
                    loader.load_state_dict(state)
            iterators = [iter(loader) for loader in loaders]
            for _ in range(draw.randint(1, 3) * 12 // world_size):
                batches = [next(iterator, None) for iterator in iterators]
                if batches[0] is None:
                    break
                step = steps.setdefault(position // 12, [])
                step.extend(row for batch in batches for row in batch.tolist())
                position += world_size
            states = [loader.state_dict() for loader in loaders]
            assert all(state == states[0] for state in states)
            state = json.loads(json.dumps(states[0]))
            assert len(json.dumps(state)) < 1000
            position = state["position"]
        order = ReproducibleRandomSampler(range(rows), seed=1, epoch=epoch).order().tolist()
        taken = [sorted(step) for _, step in sorted(steps.items())]
        assert sorted(row for step in taken for row in step) == list(range(rows))
        for index, step in enumerate(taken[:-1]):
            assert step == sorted(order[index * 12 * size : (index + 1) * 12 * size])


def test_the_state_counts_batches_yielded_not_prefetched() -> None:
    """Workers run ahead; the position does not."""
    loader = shuffled(num_workers=2, prefetch_factor=4)
    iterator = iter(loader)
    assert loader.state_dict()["position"] == 0
    next(iterator)
    assert loader.state_dict()["position"] == 1


def test_a_run_may_stop_several_times_in_one_epoch() -> None:
    """Each restart begins at the position of the previous stop."""
    whole, seen, state = listed(shuffled()), [], None
    for _ in range(len(whole)):
        loader = shuffled()
        if state is not None:
            loader.load_state_dict(state)
        iterator = iter(loader)
        seen.append(next(iterator).tolist())
        state = loader.state_dict()
    assert seen == whole


def test_a_state_saved_before_the_first_batch_after_a_restart_is_the_loaded_one() -> None:
    """Saving right after a restart loses nothing."""
    state = state_after(shuffled(), 5)
    loader = shuffled()
    loader.load_state_dict(state)
    assert loader.state_dict() == state
    iterator = iter(loader)
    assert loader.state_dict() == state
    next(iterator)
    assert loader.state_dict()["position"] == 6


def test_a_finished_pass_resumes_with_no_batch_and_then_from_the_start() -> None:
    """A run may be stopped in the validation after an epoch."""
    loader = shuffled()
    loader.load_state_dict(state_after(shuffled(), len(loader)))
    assert listed(loader) == []
    assert listed(loader) == listed(shuffled())


def test_an_unfinished_pass_begun_again_starts_at_its_first_batch() -> None:
    """torch's loader does the same."""
    loader = shuffled()
    next(iter(loader))
    assert listed(loader) == listed(shuffled())


def test_each_epoch_has_its_order_and_the_loader_sets_the_epoch_of_its_sampler() -> None:
    """The epoch reaches the sampler inside the wrapper, too."""
    loader, ranked = shuffled(), loader_of_rank(0, 2)
    first, first_ranked = listed(loader), listed(ranked)
    loader.set_epoch(1)
    ranked.set_epoch(1)
    assert loader.sampler.epoch == loader.epoch == ranked.epoch == 1
    assert listed(loader) != first
    assert listed(ranked) != first_ranked
    loader.set_epoch(0)
    assert listed(loader) == first


def test_a_position_is_kept_for_its_own_epoch_and_dropped_for_another() -> None:
    """Setting the epoch that a run resumes in is part of the loop."""
    state = state_after(shuffled(), 5)
    kept, dropped = shuffled(), shuffled()
    kept.load_state_dict(state)
    kept.set_epoch(0)
    dropped.load_state_dict(state)
    dropped.set_epoch(1)
    assert len(listed(kept)) == 8
    assert len(listed(dropped)) == 13


def test_torchs_own_shuffling_is_resumed_too() -> None:
    """The seed that torch's RandomSampler draws is part of the state."""
    torch.manual_seed(3)
    expected = listed(DataLoader(range(20), batch_size=3, shuffle=True))
    torch.manual_seed(3)
    loader = SaveableDataLoader(range(20), batch_size=3, shuffle=True)
    assert listed(loader) == expected
    again = SaveableDataLoader(range(20), batch_size=3, shuffle=True)
    state = state_after(loader, 2)
    rest = listed(loader)
    loader.load_state_dict(state)
    again.load_state_dict(state)
    assert listed(again) == listed(loader) != rest[2:]


def test_an_iterator_draws_from_the_global_generator_as_torchs_does() -> None:
    """What a model draws afterwards is bit-equal."""
    for make in (
        lambda cls: cls(range(9), batch_size=2),
        lambda cls: cls(range(9), batch_size=2, shuffle=True),
        lambda cls: cls(range(9), batch_size=2, sampler=ReproducibleRandomSampler(range(9))),
    ):
        draws = []
        for cls in (DataLoader, SaveableDataLoader):
            torch.manual_seed(11)
            list(make(cls))
            draws.append(torch.rand(3).tolist())
        assert draws[0] == draws[1]


def test_a_sampler_without_a_length_is_resumed_by_iterating_it() -> None:
    """It has no plan."""

    class Endless(Sampler[int]):
        def __iter__(self) -> Any:
            row = 0
            while True:
                yield row % 7
                row += 1

    def make() -> Any:
        return SaveableDataLoader(range(7), batch_size=3, sampler=Endless())

    state = state_after(make(), 4)
    loader = make()
    loader.load_state_dict(state)
    assert next(iter(loader)).tolist() == [5, 6, 0]


def test_changed_data_or_settings_are_refused_by_name() -> None:
    """The error shows the saved and the present value."""
    state = state_after(shuffled(), 5)
    for other, words in (
        (shuffled(rows=51), r"dataset.*rows was 50 and is 51"),
        (shuffled(batch_size=5), r"plan.*batch_size was 4 and is 5"),
        (shuffled(seed=2), r"plan.*seed was 1 and is 2"),
        (
            SaveableDataLoader(range(50), batch_size=4),
            r"sampler was 'Repro.*is 'SequentialSampler'",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            other.load_state_dict(state)
        assert other.state_dict()["position"] == 0


def test_changed_lengths_are_refused() -> None:
    """They decide the batches."""

    def make(last: int) -> Any:
        lengths = [*range(1, 20), last]
        sampler = DynamicBatchSampler(range(20), 60, num_buckets=3, lengths_list=lengths)
        return SaveableDataLoader(range(20), batch_sampler=sampler)

    state = state_after(make(20), 2)
    with pytest.raises(ValueError, match=r"plan.*lengths was"):
        make(21).load_state_dict(state)


def test_changed_row_ids_are_refused() -> None:
    """The number of rows is the same."""

    class Named(list[int]):
        def __init__(self, ids: list[str]) -> None:
            super().__init__(range(len(ids)))
            self.data_ids = ids

    state = state_after(SaveableDataLoader(Named(["a", "b", "c"])), 1)
    with pytest.raises(ValueError, match=r"dataset.*ids was"):
        SaveableDataLoader(Named(["a", "c", "b"])).load_state_dict(state)


def test_the_ids_of_many_rows_are_read_once() -> None:
    """A save during training must not read millions of them."""

    class Counting(list[int]):
        reads = 0

        @property
        def data_ids(self) -> list[str]:
            self.reads += 1
            return ["a", "b", "c"]

    dataset = Counting(range(3))
    loader = SaveableDataLoader(dataset)
    assert loader.state_dict() == loader.state_dict()
    assert dataset.reads == 1


def test_varying_batches_of_a_later_epoch_are_resumed() -> None:
    """SpeechBrain resumes with another order in one process."""
    lengths = [1 + (7 * row) % 20 for row in range(80)]

    def make() -> Any:
        sampler = DynamicBatchSampler(lengths, 60, num_buckets=4, lengths_list=lengths)
        loader = SaveableDataLoader(range(80), batch_sampler=sampler)
        loader.set_epoch(3)
        return loader

    whole, first = listed(make()), listed(make())
    assert whole == first
    again = make()
    again.set_epoch(0)
    assert listed(again) != whole
    again.load_state_dict(state_after(make(), 4))
    assert again.epoch == 3
    assert listed(again) == whole[4:]


def test_an_order_that_only_its_sampler_knows_is_compared_when_it_is_computed() -> None:
    """A generator in another state gives another order, which would repeat rows."""

    def make(seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        sampler = RandomSampler(range(30), generator=generator)
        return SaveableDataLoader(range(30), batch_size=4, sampler=sampler)

    whole, state = listed(make(1)), state_after(make(1), 3)
    same, other = make(1), make(2)
    same.load_state_dict(state)
    other.load_state_dict(state)
    assert listed(same) == whole[3:]
    with pytest.raises(ValueError, match=r"the order .*checksum of the sampler's order was"):
        iter(other)


def test_another_world_size_resumes_if_a_round_begins_at_the_position() -> None:
    """Two ranks' four batches are four of one rank, or one of each of four."""
    state = state_after(loader_of_rank(0, 2), 2)
    assert state["position"] == 4
    order = ReproducibleRandomSampler(range(50), seed=1).order().tolist()
    for world_size in (1, 2, 4):
        loaders = [loader_of_rank(r, world_size) for r in range(world_size)]
        for loader in loaders:
            loader.load_state_dict(state)
        taken = [row for loader in loaders for batch in listed(loader) for row in batch]
        assert sorted(taken) == sorted(order[8:])


def test_a_world_size_without_a_round_at_the_position_is_refused_with_those_that_have_one() -> None:
    """The error names the options."""
    with pytest.raises(
        ValueError, match=r"got 3 \(the state was saved on 2\).*\[1, 2, 4\].*elastic"
    ):
        loader_of_rank(0, 3).load_state_dict(state_after(loader_of_rank(0, 2), 2))


def test_elastic_shards_the_remaining_batches_on_any_world_size() -> None:
    """Nothing is repeated or lost, over a second stop too; only the grouping differs."""
    state = state_after(loader_of_rank(0, 2), 2)
    order = ReproducibleRandomSampler(range(50), seed=1).order().tolist()
    loaders = [loader_of_rank(r, 3, elastic=True) for r in range(3)]
    taken = []
    for loader in loaders:
        loader.load_state_dict(state)
        taken += [row for batch in listed(islice(loader, 2)) for row in batch]
        middle = loader.state_dict()
    again = [loader_of_rank(r, 3) for r in range(3)]
    for loader in again:
        loader.load_state_dict(middle)
        taken += [row for batch in listed(loader) for row in batch]
    assert sorted(taken) == sorted(order[8:])


def test_speechbrains_number_is_read_and_written(tmp_path: Any) -> None:
    """The file holds what SpeechBrain writes, and the number alone is enough to resume."""
    loader = shuffled()
    loader._speechbrain_save(tmp_path / "new.ckpt")
    assert (tmp_path / "new.ckpt").read_text() == "None"
    state = state_after(loader, 5)
    loader._speechbrain_save(tmp_path / "dataloader-TRAIN.ckpt")
    assert (tmp_path / "dataloader-TRAIN.ckpt").read_text() == "5"
    assert json.loads((tmp_path / "dataloader-TRAIN.json").read_text()) == state
    for path in (tmp_path / "dataloader-TRAIN.ckpt", tmp_path / "theirs.ckpt"):
        path.write_text("5")
        again = shuffled()
        again._speechbrain_load(path, end_of_epoch=False)
        again.set_epoch(0)
        assert listed(again) == listed(shuffled())[5:]


def test_the_number_of_a_run_by_speechbrain_is_for_the_epoch_that_the_loop_sets(
    tmp_path: Any,
) -> None:
    """It does not hold its epoch, so setting one must not drop it."""
    (tmp_path / "theirs.ckpt").write_text("5")
    loader, other = shuffled(), shuffled()
    loader._speechbrain_load(tmp_path / "theirs.ckpt", end_of_epoch=False)
    loader.set_epoch(2)
    other.set_epoch(2)
    assert listed(loader) == listed(other)[5:]


def test_an_end_of_epoch_checkpoint_starts_the_next_epoch_at_its_first_batch(tmp_path: Any) -> None:
    """SpeechBrain does the same."""
    loader = shuffled()
    list(loader)
    loader._speechbrain_save(tmp_path / "loader.ckpt")
    again = shuffled()
    again._speechbrain_load(tmp_path / "loader.ckpt", end_of_epoch=True)
    assert len(listed(again)) == len(again)


def test_a_loader_that_was_iterated_resumes_from_a_checkpoint_too(tmp_path: Any) -> None:
    """SpeechBrain ignores the position silently, and the model trains on other rows."""
    loader = shuffled()
    state_after(loader, 5)
    loader._speechbrain_save(tmp_path / "loader.ckpt")
    whole = listed(loader)
    loader._speechbrain_load(tmp_path / "loader.ckpt", end_of_epoch=False)
    assert listed(loader) == whole[5:]
    loader._speechbrain_load(tmp_path / "loader.ckpt", end_of_epoch=True)
    assert loader.state_dict()["position"] == 0
    assert listed(loader) == whole


def test_the_marks_of_the_checkpointer_are_on_the_methods() -> None:
    """brain-ckpt and SpeechBrain find the methods by these attributes."""
    assert SaveableDataLoader._speechbrain_save._speechbrain_saver
    assert SaveableDataLoader._speechbrain_load._speechbrain_loader


def test_a_file_without_a_position_is_an_error(tmp_path: Any) -> None:
    """The error names the file."""
    (tmp_path / "x.ckpt").write_text("hello")
    with pytest.raises(ValueError, match=r"x\.ckpt must hold a number of batches.*'hello'"):
        shuffled()._speechbrain_load(tmp_path / "x.ckpt", end_of_epoch=False)


def test_a_position_after_the_end_of_the_data_is_an_error(tmp_path: Any) -> None:
    """A number of SpeechBrain's has no fingerprint."""
    (tmp_path / "x.ckpt").write_text("99")
    loader = shuffled()
    loader._speechbrain_load(tmp_path / "x.ckpt", end_of_epoch=False)
    with pytest.raises(ValueError, match=r"at most 13 batches is required, got 99"):
        iter(loader)


def test_the_state_of_another_object_is_refused() -> None:
    """So is that of another version."""
    with pytest.raises(ValueError, match=r"format 1 is required, got None"):
        shuffled().load_state_dict({"lr": 0.1})


def test_batches_out_of_order_are_refused() -> None:
    """A count of them is not a position."""
    with pytest.raises(ValueError, match=r"in_order must be True.*use torch.utils.data.DataLoader"):
        SaveableDataLoader(range(3), in_order=False)


def test_an_epoch_may_have_no_batches() -> None:
    """With drop_last there may be too few rows."""
    loader = SaveableDataLoader(range(3), batch_size=4, drop_last=True)
    assert list(loader) == []
    assert len(loader) == 0
    assert loader.state_dict()["finished"]


def test_torchs_own_attributes_and_length_stay() -> None:
    """Code that reads a DataLoader can read this class."""
    loader = SaveableDataLoader(range(10), batch_size=3)
    assert (loader.batch_size, len(loader), len(loader.dataset)) == (3, 4, 10)
    assert isinstance(loader, DataLoader)
    assert isinstance(loader.sampler, SequentialSampler)
    assert len(iter(loader)) == 4


def test_every_rank_yields_as_many_batches_as_its_length() -> None:
    """Progress bars and schedulers read it, with a sampler of rows too."""
    draw = random.Random(5)
    for _ in range(100):
        rows, size, world_size = draw.randint(1, 60), draw.randint(1, 7), draw.randint(1, 5)
        drop_last = draw.random() < 0.5
        lengths = set()
        for rank in range(world_size):
            sampler = DistributedSamplerWrapper(SequentialSampler(range(rows)), world_size, rank)
            loader = SaveableDataLoader(
                range(rows), batch_size=size, sampler=sampler, drop_last=drop_last
            )
            if rows >= world_size:
                assert len(list(loader)) == len(loader)
            lengths.add(len(loader))
        assert len(lengths) == 1


def test_an_error_in_a_row_names_the_row() -> None:
    """The type of the error does not change; the note names the row and the batch."""

    class Broken(list[int]):
        def __getitem__(self, row: Any) -> Any:
            if row == 7:
                raise KeyError("wav")
            return row

    with pytest.raises(KeyError, match=r"wav") as caught:
        list(SaveableDataLoader(Broken(range(10)), batch_size=4))
    if hasattr(caught.value, "__notes__"):
        assert caught.value.__notes__ == ["raised by row 7 of batch 1"]


def test_a_row_that_raises_stop_iteration_does_not_end_the_epoch() -> None:
    """In torch's loader it does, silently."""

    class Broken(list[int]):
        def __getitem__(self, row: Any) -> Any:
            raise StopIteration

    with pytest.raises(RuntimeError, match=r"StopIteration by row 0 of batch 0"):
        list(SaveableDataLoader(Broken(range(10)), batch_size=4))
