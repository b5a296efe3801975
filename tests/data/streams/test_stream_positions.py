"""SaveableDataLoader over an IterableDataset."""

from __future__ import annotations

import json
import logging
import random
from typing import Any

import pytest
import torch
from data_helpers import USES_WORKERS, keep
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from brain_data import SaveableDataLoader

pytestmark = USES_WORKERS


class Plain(IterableDataset[int]):
    """A stream without a state, sharded among the workers."""

    def __init__(self, rows: int = 30) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        yield from range(worker, self.rows, workers)


class Stateful(IterableDataset[int]):
    """A stream with a state, as Hugging Face's have."""

    def __init__(self, rows: int = 30) -> None:
        self.rows = rows
        self.done = 0
        self.read = 0

    def __iter__(self) -> Any:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        shard = range(worker, self.rows, workers)
        first, self.done = self.done, 0
        for place in range(first, len(shard)):
            self.read += 1
            self.done = place + 1
            yield shard[place]
        self.done = 0

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done = state["done"]


class Noisy(Plain):
    """A stream that draws random numbers for each row."""

    def __iter__(self) -> Any:
        for row in super().__iter__():
            yield [row, random.random(), torch.rand(()).item()]


@pytest.mark.parametrize("kind", [Plain, Stateful, Noisy])
@pytest.mark.parametrize("workers", [0, 2, 3])
def test_a_stream_resumes_at_its_position(kind: Any, workers: int) -> None:
    """With its own state and by reading again, the rest is the same."""

    def make() -> Any:
        return SaveableDataLoader(kind(), batch_size=4, num_workers=workers, collate_fn=keep)

    whole = list(make())
    if kind is not Noisy:
        assert whole == list(DataLoader(kind(), batch_size=4, num_workers=workers, collate_fn=keep))
    for done in (1, 3, 4, len(whole)) if workers < 3 else (4,):
        loader = make()
        iterator = iter(loader)
        assert [next(iterator) for _ in range(done)] == whole[:done]
        state = json.loads(json.dumps(loader.state_dict()))
        again = make()
        again.load_state_dict(state)
        assert again.state_dict() == state
        assert list(again) == whole[done:]


def test_a_stream_resumes_from_its_own_state_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At least eight rows are read again, to compare them."""
    caplog.set_level(logging.INFO)
    loader = SaveableDataLoader(Stateful(), batch_size=4)
    iterator = iter(loader)
    for _ in range(4):
        next(iterator)
    dataset = Stateful()
    again = SaveableDataLoader(dataset, batch_size=4)
    again.load_state_dict(loader.state_dict())
    assert next(iter(again)).tolist() == [16, 17, 18, 19]
    assert dataset.read == 12
    assert "resumes at batch 4 from its own state" in caplog.text


def test_reading_again_is_logged_as_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """It may take long."""
    loader = SaveableDataLoader(Plain(), batch_size=4)
    iterator = iter(loader)
    next(iterator)
    again = SaveableDataLoader(Plain(), batch_size=4)
    again.load_state_dict(loader.state_dict())
    iter(again)
    assert "Plain has no state_dict: its first 1 batches are read again" in caplog.text


def test_another_number_of_workers_is_refused() -> None:
    """Each worker has a part of its own."""
    loader = SaveableDataLoader(Plain(), batch_size=4)
    next(iter(loader))
    with pytest.raises(ValueError, match=r"num_workers=0 is required.*got 2"):
        SaveableDataLoader(Plain(), batch_size=4, num_workers=2).load_state_dict(
            loader.state_dict()
        )


def test_the_state_of_the_other_kind_of_dataset_is_refused() -> None:
    """Map-style datasets have positions, streams have states."""
    stream, rows = SaveableDataLoader(Plain()), SaveableDataLoader(range(3))
    with pytest.raises(ValueError, match="IterableDataset is required"):
        stream.load_state_dict(rows.state_dict())
    with pytest.raises(ValueError, match="map-style dataset is required"):
        rows.load_state_dict(stream.state_dict())


def test_a_state_for_a_dataset_that_cannot_load_it_is_refused() -> None:
    """Reading again would hide that the dataset has changed."""
    loader = SaveableDataLoader(Stateful(), batch_size=4)
    next(iter(loader))
    with pytest.raises(ValueError, match=r"load_state_dict is required.*got 'Plain'"):
        SaveableDataLoader(Plain(), batch_size=4).load_state_dict(loader.state_dict())


def test_a_stream_is_read_again_for_speechbrains_number(tmp_path: Any) -> None:
    """SpeechBrain cannot resume a stream."""
    (tmp_path / "x.ckpt").write_text("2")
    for workers in (0, 2):
        loader = SaveableDataLoader(Plain(), batch_size=4, num_workers=workers)
        whole = [batch.tolist() for batch in loader]
        again = SaveableDataLoader(Plain(), batch_size=4, num_workers=workers)
        again._speechbrain_load(tmp_path / "x.ckpt", end_of_epoch=False)
        assert [batch.tolist() for batch in again] == whole[2:]


def test_persistent_workers_get_the_epoch() -> None:
    """The random draws of the next epoch differ."""

    def make(workers: int) -> Any:
        return SaveableDataLoader(
            Noisy(), batch_size=4, num_workers=workers, persistent_workers=workers > 0,
            collate_fn=keep,
        )  # fmt: skip

    loader, plain = make(1), make(0)
    for epoch in range(2):
        loader.set_epoch(epoch)
        plain.set_epoch(epoch)
        assert list(loader) == list(plain)


def test_persistent_workers_of_a_stream_are_replaced_for_a_loaded_position() -> None:
    """The former workers keep their position."""
    loader = SaveableDataLoader(Plain(), batch_size=4, num_workers=1, persistent_workers=True)
    whole = [batch.tolist() for batch in loader]
    iterator = iter(loader)
    next(iterator)
    loader.load_state_dict(loader.state_dict())
    assert [batch.tolist() for batch in loader] == whole[1:]
    assert [batch.tolist() for batch in loader] == whole


def test_a_stream_drops_its_last_batch_if_asked() -> None:
    """torch's loader does the same."""
    loader = SaveableDataLoader(Plain(10), batch_size=4, drop_last=True)
    assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert list(SaveableDataLoader(Plain(3), batch_size=None)) == [0, 1, 2]
