"""The size of checkpoints is compared with the free space before they are written."""

import logging
from typing import NamedTuple

import pytest
import torch

from brain_ckpt import Checkpointer, CheckpointSaveError, check_space
from brain_ckpt.recoverables.size import estimate_bytes
from brain_ckpt.saving import space


class Usage(NamedTuple):
    """The result of `shutil.disk_usage`."""

    total: int
    used: int
    free: int


OPTIMIZERS = [
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.Adam,
    lambda p: torch.optim.AdamW(p, amsgrad=True),
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
    lambda p: torch.optim.SGD(p, lr=0.1),
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
]


@pytest.fixture
def free(monkeypatch):
    """Return a function that sets the number of free bytes."""

    def set_free(free_bytes):
        monkeypatch.setattr(
            space.shutil, "disk_usage", lambda path: Usage(free_bytes, 0, free_bytes)
        )

    return set_free


@pytest.fixture
def checkpointer(tmp_path):
    """Return a checkpointer of a model of 4 MB and an optimizer that will have 8 MB."""
    model = torch.nn.Linear(1000, 1000, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    return Checkpointer(tmp_path, {"model": model, "optimizer": optimizer})


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_the_estimate_includes_what_an_optimizer_adds_at_its_first_step(make):
    """A frozen parameter gets no moments."""
    model = torch.nn.Sequential(torch.nn.Linear(50, 40), torch.nn.Linear(40, 3))
    model[1].requires_grad_(requires_grad=False)
    optimizer = make(model.parameters())
    before = estimate_bytes(optimizer)
    model(torch.ones(2, 50)).sum().backward()
    optimizer.step()
    assert before == pytest.approx(estimate_bytes(optimizer), abs=100)  # counts of steps


def test_tensors_that_share_memory_are_counted_once():
    """They are written once, too."""
    model = torch.nn.ModuleList([torch.nn.Linear(30, 30, bias=False) for _ in range(2)])
    model[1].weight = model[0].weight
    assert estimate_bytes(model) == 30 * 30 * 4


def test_the_estimate_is_that_of_the_checkpoint(checkpointer):
    """Up to headers, the manifest and meta."""
    model, optimizer = checkpointer.recoverables.values()
    estimate = checkpointer.estimate_bytes()
    model(torch.ones(1, 1000)).sum().backward()
    optimizer.step()
    saved = checkpointer.save_checkpoint()
    assert estimate == pytest.approx(space.size_of(saved), rel=0.01)


def test_a_checkpoint_that_does_not_fit_is_an_error_with_both_numbers(checkpointer, free):
    """Before anything is written."""
    free(11_000_000)
    with pytest.raises(CheckpointSaveError, match=r"about 12\.0 MB and 11\.0 MB are free in"):
        check_space(checkpointer)
    assert not list(checkpointer.checkpoints_dir.iterdir())


@pytest.mark.parametrize(
    ("spare", "free_bytes", "warns"), [(0, 25e6, 0), (1, 25e6, 1), (0, 2e7, 1)]
)
def test_checkpoints_that_will_not_fit_are_a_warning_with_both_numbers(
    spare, free_bytes, warns, checkpointer, free, caplog
):
    """One is kept, one more is there during a save, and the spare ones."""
    checkpointer.spare = spare
    free(int(free_bytes))
    check_space(checkpointer)
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == warns
    if warns:
        assert f"{2 + spare} more checkpoints of about 12.0 MB each take" in warned[0].getMessage()
        assert f"{free_bytes / 1e6:.1f} MB are free" in warned[0].getMessage()


def test_the_first_retention_that_will_not_fit_is_a_warning(checkpointer, free, caplog):
    """What is kept is known once a save names it; the warning is given once."""
    free(15_000_000)
    for _ in range(2):
        checkpointer.save_and_keep_only({"loss": 1.0}, num_to_keep=2, min_keys=["loss"])
    warned = [r.getMessage() for r in caplog.records if "The disk will be full" in r.getMessage()]
    assert len(warned) == 1
    assert "4 more checkpoints of about 4.0 MB each take 16.0 MB" in warned[0]


def test_a_system_that_does_not_tell_the_free_space_is_no_error(checkpointer, monkeypatch):
    """As some network file systems do not."""

    def fail(path):
        raise OSError(5, "I/O error")

    monkeypatch.setattr(space.shutil, "disk_usage", fail)
    check_space(checkpointer)
