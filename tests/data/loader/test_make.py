"""make_dataloader and distributed_loader_specifics: SpeechBrain's defaults."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset, SequentialSampler

from brain_data import (
    DistributedSamplerWrapper,
    DynamicBatchSampler,
    DynamicItemDataset,
    KeyedRandomSampler,
    PaddedBatch,
    ReproducibleRandomSampler,
    SaveableDataLoader,
    distributed_loader_specifics,
    make_dataloader,
    make_sampler,
)


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        yield from range(5)


def test_shuffling_is_reproducible_and_seeded_by_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seed is SB_GLOBAL_SEED, or SpeechBrain's default."""
    monkeypatch.delenv("SB_GLOBAL_SEED", raising=False)
    loader = make_dataloader(range(10), batch_size=3, shuffle=True)
    assert isinstance(loader, SaveableDataLoader)
    assert loader.sampler.seed == 563375142
    assert [b.tolist() for b in loader] == [b.tolist() for b in loader]
    monkeypatch.setenv("SB_GLOBAL_SEED", "7")
    assert make_dataloader(range(10), shuffle=True).sampler.seed == 7


def test_a_keyed_order_is_seeded_by_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is another order than that of shuffle=True, and the same on each rank."""
    monkeypatch.setenv("SB_GLOBAL_SEED", "7")
    loader = make_dataloader(range(10), batch_size=3, shuffle="keyed")
    assert isinstance(loader.sampler, KeyedRandomSampler)
    one = [batch.tolist() for batch in loader]
    assert [row for batch in one for row in batch] == list(KeyedRandomSampler(range(10), 7))
    assert one != [b.tolist() for b in make_dataloader(range(10), batch_size=3, shuffle=True)]
    whole = [batch.tolist() for batch in make_dataloader(range(8), batch_size=2, shuffle="keyed")]
    assert sharded(8, 2, batch_size=2, shuffle="keyed") == [whole[::2], whole[1::2]]


def test_another_word_for_shuffle_is_refused() -> None:
    """Otherwise any string would mean the default order."""
    with pytest.raises(ValueError, match=r'True, False or "keyed", got \'keyd\''):
        make_dataloader(range(4), shuffle="keyd")
    assert isinstance(make_sampler(range(4), shuffle=False), SequentialSampler)


def test_rows_of_a_dynamic_item_dataset_are_padded() -> None:
    """A collate function may replace PaddedBatch."""
    data = {f"utt{i}": {"duration": i} for i in range(4)}
    dataset = DynamicItemDataset(data, output_keys=["id", "duration"])
    batch = next(iter(make_dataloader(dataset, batch_size=2)))
    assert isinstance(batch, PaddedBatch)
    assert batch.id == ["utt0", "utt1"]
    assert next(iter(make_dataloader(dataset, collate_fn=len, batch_size=2))) == 2


@pytest.mark.parametrize("name", ["sampler", "batch_sampler"])
def test_two_orders_are_refused(name: str) -> None:
    """Shuffling and a sampler exclude each other."""
    for make in (
        lambda **kwargs: make_dataloader(range(4), **kwargs),
        lambda **kwargs: distributed_loader_specifics(True, 0, range(4), kwargs),  # noqa: FBT003
    ):
        with pytest.raises(ValueError, match=rf"shuffle=True and a {name} exclude each other"):
            make(shuffle=True, **{name: [[0], [1]]})


def test_a_stream_gets_a_saveable_loader_too() -> None:
    """SpeechBrain's loader of a stream cannot be saved."""
    loader = make_dataloader(Stream(), batch_size=2)
    assert isinstance(loader, SaveableDataLoader)
    assert [b.tolist() for b in loader] == [[0, 1], [2, 3], [4]]


def test_a_webdataset_is_not_batched_again() -> None:
    """It is recognized by its module's name, without an import."""

    class Pipeline(Stream):
        pass

    Pipeline.__module__ = "webdataset.pipeline"
    assert make_dataloader(Pipeline()).batch_size is None
    assert make_dataloader(Pipeline(), batch_size=2).batch_size == 2


def test_in_one_process_the_arguments_do_not_change() -> None:
    """There is nothing to shard."""
    kwargs = {"batch_size": 3, "shuffle": True}
    assert distributed_loader_specifics(False, 0, range(9), kwargs) == kwargs  # noqa: FBT003


def sharded(rows: int, world_size: int, **kwargs: Any) -> list[list[list[int]]]:
    """Return each rank's batches."""
    given = dict(kwargs)
    ranks = []
    for rank in range(world_size):
        specifics = distributed_loader_specifics(True, rank, range(rows), kwargs)  # noqa: FBT003
        ranks.append([batch.tolist() for batch in make_dataloader(range(rows), **specifics)])
    assert kwargs == given
    return ranks


@pytest.fixture(autouse=True)
def _two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brain_data.order.distributed.get_world_size", lambda: 2)
    monkeypatch.delenv("SB_GLOBAL_SEED", raising=False)


def test_ranks_are_assigned_whole_batches_in_the_order_of_one_process() -> None:
    """shuffle=False is used as given, unlike in SpeechBrain."""
    one = [batch.tolist() for batch in make_dataloader(range(8), batch_size=2)]
    assert sharded(8, 2, batch_size=2, shuffle=False) == sharded(8, 2, batch_size=2) == [
        one[::2], one[1::2],
    ]  # fmt: skip


def test_ranks_are_assigned_the_shuffled_order_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """SpeechBrain does not use the seed of the run."""
    for seed in ("563375142", "7"):
        monkeypatch.setenv("SB_GLOBAL_SEED", seed)
        one = [b.tolist() for b in make_dataloader(range(8), batch_size=2, shuffle=True)]
        assert sharded(8, 2, batch_size=2, shuffle=True) == [one[::2], one[1::2]]


def test_ranks_are_assigned_any_sampler_and_any_batch_sampler() -> None:
    """A wrapped sampler is not wrapped again."""
    order = ReproducibleRandomSampler(range(8), seed=3)
    one = [batch.tolist() for batch in make_dataloader(range(8), batch_size=2, sampler=order)]
    assert sharded(8, 2, batch_size=2, sampler=order) == [one[::2], one[1::2]]
    varying = DynamicBatchSampler(range(8), 9, num_buckets=2, lengths_list=[1, 2, 3, 4] * 2)
    taken = sharded(8, 2, batch_sampler=varying)
    assert len(taken[0]) == len(taken[1])
    assert sorted(row for rank in taken for batch in rank for row in batch) == list(range(8))
    wrapped = DistributedSamplerWrapper([[0], [1]], num_replicas=2, rank=0)
    kwargs = distributed_loader_specifics(True, 0, range(2), {"batch_sampler": wrapped})  # noqa: FBT003
    assert kwargs["batch_sampler"] is wrapped


def test_dropping_the_last_gives_ranks_whole_batches_only() -> None:
    """Incomplete batches and rounds are dropped."""
    assert sharded(11, 2, batch_size=2, drop_last=True) == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]


def test_ranks_are_assigned_rows_if_there_are_no_batches() -> None:
    """With batch_size=None the sampler is sharded."""
    specifics = distributed_loader_specifics(True, 1, range(5), {"batch_size": None})  # noqa: FBT003
    assert isinstance(specifics["sampler"].sampler, SequentialSampler)
    assert list(SaveableDataLoader(torch.arange(4), **specifics)) == [1, 3]


def test_a_stream_cannot_be_sharded_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """Each rank reads all of it."""
    kwargs = distributed_loader_specifics(True, 1, Stream(), {"batch_size": 2})  # noqa: FBT003
    assert kwargs == {"batch_size": 2}
    assert "cannot be sharded among ranks" in caplog.text


def test_importing_changes_no_class_of_torch() -> None:
    """SpeechBrain replaces two methods of torch's private iterator when it is imported."""
    code = """
import torch.utils.data.dataloader as torch_loader
classes = [c for c in vars(torch_loader).values() if isinstance(c, type)]
before = [dict(vars(c)) for c in classes]
import brain_data
list(brain_data.make_dataloader(range(4), shuffle=True))
print([dict(vars(c)) for c in classes] == before)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("True\n", "")
