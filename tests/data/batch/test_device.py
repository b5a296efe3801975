"""Batches moved to a device."""

from __future__ import annotations

from collections import namedtuple
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset

from brain_data import SaveableDataLoader
from brain_data.batch.device import prefetch_to_device, to_device

Pair = namedtuple("Pair", ["x", "name"])  # noqa: PYI024 - torch's collate makes such ones
META = torch.device("meta")


class Batch:
    """A batch whose `to` accepts a device only."""

    def __init__(self, device: Any = None) -> None:
        self.device = device

    def to(self, device: Any) -> Batch:
        return Batch(device)


def test_nested_batches_are_moved_and_keep_their_types() -> None:
    """Tensors in mappings, lists, tuples and named tuples are moved; other values stay."""
    x = torch.zeros(2)
    moved = to_device({"a": [x, "text"], "b": (x, Pair(x, "n")), "c": Batch(), "d": 3}, META)
    assert moved["a"][0].device == moved["b"][0].device == moved["b"][1].x.device == META
    assert (moved["a"][1], moved["b"][1].name, moved["d"]) == ("text", "n", 3)
    assert moved["c"].device == META
    assert isinstance(moved["b"][1], Pair)


def test_a_batch_that_moves_itself_may_return_nothing() -> None:
    """As SpeechBrain's recipes write it at times."""

    class InPlace(Batch):
        def to(self, device: Any) -> None:  # type: ignore[override]
            self.device = device

    batch = InPlace()
    assert to_device(batch, META) is batch
    assert batch.device == META


def test_a_loader_yields_batches_on_its_device_and_counts_those_only() -> None:
    """A batch that was copied ahead does not count as yielded."""
    loader = SaveableDataLoader(torch.arange(8), batch_size=2, device="meta")
    batches = iter(loader)
    assert next(batches).device == META
    assert loader.state_dict()["position"] == 1


def test_batches_of_a_stream_are_moved_too() -> None:
    """The positions of the workers are not moved."""

    class Stream(IterableDataset[int]):
        def __iter__(self) -> Any:
            yield from range(5)

    loader = SaveableDataLoader(Stream(), batch_size=2, device="meta")
    assert [batch.device for batch in loader] == [META] * 3
    assert loader.state_dict()["position"] == 3


def test_the_next_copy_is_queued_before_the_current_batch_is_yielded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stand-ins for CUDA's streams record the order of the calls."""
    calls: list[str] = []

    class FakeStream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: FakeStream) -> None:
            calls.append(f"{self.name} waits for {other.name}")

    class Recorded(Batch):
        def __init__(self, number: int) -> None:
            self.number = number

        def to(self, device: Any) -> int:
            calls.append(f"copy {self.number}")
            return self.number

    main = FakeStream("main")
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: FakeStream("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    batches = prefetch_to_device(iter([Recorded(0), Recorded(1)]), torch.device("cuda"))
    calls.extend(f"compute {number}" for number in batches)
    assert calls == [
        "side waits for main",
        "copy 0",
        "main waits for side",
        "side waits for main",
        "copy 1",
        "compute 0",
        "main waits for side",
        "compute 1",
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_next_batch_is_copied_on_a_side_stream() -> None:
    """Every batch is complete although the main stream is busy with the previous one."""
    device = torch.device("cuda")
    data = [torch.full((1 << 20,), float(i)).pin_memory() for i in range(20)]
    busy = torch.randn(2000, 2000, device=device)
    sums = []
    for batch in prefetch_to_device(iter(data), device):
        busy = busy @ busy / busy.norm()
        sums.append(batch.mean())
    assert [total.item() for total in sums] == [float(i) for i in range(20)]
