"""The loaders that `fit` makes of datasets and of other loaders."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from brain_core import RunOptions
from brain_core.loop.stage_loader import make_resumable, make_stage_loader

ROWS = torch.arange(8.0)
GPU = torch.device("cuda:1")


def loaders_of_rows(gpu_or_cpu, **kwargs):
    """Return what is made of a dataset in training and in an evaluation."""
    return [
        make_stage_loader(ROWS, kwargs, device=gpu_or_cpu, for_training=training)[0]
        for training in (True, False)
    ]


def loaders(gpu_or_cpu, **kwargs):
    """Return those, and what is made of torch's loader in training."""
    loader = DataLoader(ROWS, **kwargs)
    arguments = {"device": gpu_or_cpu, "saved": (), "is_saved": True}
    return [
        *loaders_of_rows(gpu_or_cpu, **kwargs),
        make_resumable(loader, RunOptions(), **arguments),
    ]


@pytest.mark.parametrize("device", [GPU, "cuda:1"])
def test_batches_in_pinned_memory_are_copied_to_a_gpu_ahead_of_time(device):
    """Of datasets in training and evaluation, and of torch's loader in training."""
    assert [loader.device for loader in loaders(device, pin_memory=True)] == [GPU] * 3


@pytest.mark.parametrize(("device", "pinned"), [(GPU, False), ("cpu", True), ("cpu", False)])
def test_other_batches_are_not_moved(device, pinned):
    """Of memory that is not pinned, the copy would block the host."""
    found = loaders(device, pin_memory=pinned)
    assert [loader.device for loader in found] == [None] * 3


def test_a_device_that_the_arguments_name_is_used():
    """So that a recipe can read pinned batches on the CPU."""
    found = loaders_of_rows(GPU, pin_memory=True, device="cpu")
    assert [loader.device for loader in found] == [torch.device("cpu")] * 2
