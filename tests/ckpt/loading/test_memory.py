"""Loading a module takes little memory beside it, and gives the same numbers."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from brain_ckpt import Checkpointer

LAYERS, WIDTH = 16, 1024
LAYER_BYTES = 4 * WIDTH * WIDTH


class Tied(nn.Module):
    """Two names of one parameter, which is copied twice from the same place of the file."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(WIDTH, WIDTH)
        self.other = nn.Linear(WIDTH, WIDTH)
        self.other.weight = self.one.weight


class Halves(nn.Linear):
    """Changes the loaded weight in place, and reads it again."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        state_dict[prefix + "weight"].mul_(0.5)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.again = state_dict[prefix + "weight"].clone()


def layers() -> nn.Module:
    return nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)])


def mapped_bytes() -> int:
    """Return the most file pages that were mapped while the process ran, as the kernel counts."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if "kB" in line}
    return 1024 * int(found["VmHWM"])


def load_in_a_process(folder: str, results: Any) -> None:
    torch.set_num_threads(1)
    module = layers()
    checkpointer = Checkpointer(folder, {"module": module})
    before = mapped_bytes()
    checkpointer.recover_if_possible()
    results.put((mapped_bytes() - before, module[0].weight.sum().item()))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_a_module_maps_about_one_tensor_at_a_time(tmp_path: Path) -> None:
    """The whole file would be 64 MiB."""
    module = layers()
    checkpointer = Checkpointer(tmp_path, {"module": module})
    checkpointer.save_checkpoint()
    checkpointer.close()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=load_in_a_process, args=(str(tmp_path), results))
    process.start()
    grown_bytes, total = results.get(timeout=120)
    process.join()
    assert total == module[0].weight.sum().item()
    assert grown_bytes < 6 * LAYER_BYTES < LAYERS * LAYER_BYTES / 2


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_tied_parameter_is_restored(tmp_path: Path, is_zip: bool) -> None:
    """Also from a file of torch's old format, which is not mapped."""
    saved, loaded = Tied(), Tied()
    checkpointer = Checkpointer(
        tmp_path,
        {"module": saved},
        custom_save_hooks={
            "module": lambda obj, path: torch.save(
                obj.state_dict(), path, _use_new_zipfile_serialization=is_zip
            )
        },
    )
    checkpointer.save_checkpoint()
    checkpointer.close()
    Checkpointer(tmp_path, {"module": loaded}).recover_if_possible()
    for key, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_a_module_that_changes_its_state_in_place_keeps_what_it_wrote(tmp_path: Path) -> None:
    """Pages that were written to are not released."""
    saved, loaded = Halves(WIDTH, WIDTH), Halves(WIDTH, WIDTH)
    checkpointer = Checkpointer(tmp_path, {"module": saved})
    checkpointer.save_checkpoint()
    checkpointer.close()
    Checkpointer(tmp_path, {"module": loaded}).recover_if_possible()
    assert torch.equal(loaded.weight, saved.weight * 0.5)
    assert torch.equal(loaded.again, saved.weight * 0.5)
