"""Saves and listings beside many checkpoints read each of these once."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch

from brain_ckpt import Checkpointer
from brain_ckpt.storage import filesystem

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def checkpointer(tmp_path: Path) -> Any:
    made = Checkpointer(tmp_path / "save", {"model": torch.nn.Linear(2, 1)})
    yield made
    made.close()


def settle() -> None:
    """Wait until the times of files are older than the resolution of a file system."""
    time.sleep(0.15)


def operations(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> Counter[str]:
    """Return how many file operations of each kind a call makes."""
    done: Counter[str] = Counter()

    def note(operation: str, path: str, detail: Any) -> None:
        del path, detail
        done[operation] += 1

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "failpoint", note)
        call()
    return done


def edit_time(path: Path, unixtime: float) -> None:
    """Write another time into a meta file, with the same number of bytes if it has so many."""
    file = path / "CKPT.yaml"
    lines = file.read_text().splitlines()
    lines = [f"unixtime: {unixtime}" if line.startswith("unixtime") else line for line in lines]
    file.write_text("\n".join(lines) + "\n")


def times(checkpointer: Checkpointer) -> list[float]:
    return [one.meta["unixtime"] for one in checkpointer.list_checkpoints()]


def test_a_save_makes_as_many_file_operations_beside_three_as_beside_thirty(
    checkpointer: Checkpointer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads no checkpoint but the last one, whose number and time it did not know."""
    counts = []
    for number in (3, 27):
        for _ in range(number):
            checkpointer.save_checkpoint()
        counts.append(operations(monkeypatch, checkpointer.save_checkpoint))
    assert counts[0] == counts[1]


def test_a_listed_checkpoint_is_not_read_again(
    checkpointer: Checkpointer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only its directory is listed, and its files are looked at."""
    for number in range(3):
        checkpointer.save_checkpoint(meta={"number": number})
    settle()
    first = checkpointer.list_checkpoints()
    assert operations(monkeypatch, checkpointer.list_checkpoints)["open"] == 0
    assert checkpointer.list_checkpoints() == first


def test_what_was_written_a_moment_ago_is_read_again(
    checkpointer: Checkpointer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another write could follow within the resolution of its time."""
    checkpointer.save_checkpoint()
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now)
    checkpointer.list_checkpoints()
    assert operations(monkeypatch, checkpointer.list_checkpoints)["open"] > 0


def test_a_changed_meta_is_seen(checkpointer: Checkpointer) -> None:
    """Another program may write to it, also with the same number of bytes."""
    saved = checkpointer.save_checkpoint()
    assert saved is not None
    settle()
    before = times(checkpointer)
    edit_time(saved.path, 1234567890.25)
    assert times(checkpointer) == [1234567890.25] != before


def test_a_damaged_manifest_is_seen(checkpointer: Checkpointer) -> None:
    """The checkpoint is listed, and cannot be loaded."""
    saved = checkpointer.save_checkpoint()
    assert saved is not None
    settle()
    assert checkpointer.list_checkpoints()[0].commit_id is not None
    manifest = saved.path / "MANIFEST.json"
    content = bytearray(manifest.read_bytes())
    content[len(content) // 2] ^= 1
    manifest.write_bytes(content)
    assert checkpointer.list_checkpoints()[0].commit_id is None


def test_a_replaced_and_a_deleted_checkpoint_are_seen(checkpointer: Checkpointer) -> None:
    """By this run, and by another program."""
    checkpointer.save_checkpoint(meta={"loss": 1}, name="best")
    other = checkpointer.save_checkpoint(meta={"loss": 3})
    assert other is not None
    settle()
    assert [one.meta["loss"] for one in checkpointer.list_checkpoints()] == [1, 3]
    checkpointer.save_checkpoint(meta={"loss": 2}, name="best")
    assert [one.meta["loss"] for one in checkpointer.list_checkpoints()] == [3, 2]
    shutil.rmtree(other.path)
    assert [one.meta["loss"] for one in checkpointer.list_checkpoints()] == [2]


def test_changing_a_listed_meta_changes_no_later_listing(checkpointer: Checkpointer) -> None:
    """Each listing has its own."""
    checkpointer.save_checkpoint(meta={"losses": [1, 2]})
    settle()
    for _ in range(2):
        listed = checkpointer.list_checkpoints()[0]
        listed.meta["losses"].append(3)
        listed.meta["mine"] = True
        listed.paramfiles.clear()
    listed = checkpointer.list_checkpoints()[0]
    assert listed.meta["losses"] == [1, 2]
    assert "mine" not in listed.meta
    assert list(listed.paramfiles) == ["model"]


@pytest.mark.parametrize("is_same_name", [True, False])
def test_a_newer_checkpoint_that_another_program_puts_there_counts(
    checkpointer: Checkpointer, is_same_name: bool
) -> None:
    """The next save is newer than it, and its number is higher."""
    saved = [checkpointer.save_checkpoint() for _ in range(3)][1]
    assert saved is not None
    copied = saved.path.with_name("copy")
    shutil.copytree(saved.path, copied)
    edit_time(copied, 9999999999.5)
    if is_same_name:
        saved.path.rename(saved.path.with_name("before"))
    copied.rename(saved.path if is_same_name else saved.path.with_name("CKPT+copied"))
    checkpointer.save_checkpoint()
    assert times(checkpointer)[-1] > 9999999999.5
    newest = max(checkpointer.list_checkpoints(), key=lambda one: one.meta["unixtime"])
    assert newest.path.name not in {"CKPT+copied", saved.path.name}


def test_a_checkpoint_of_another_run_counts_after_the_lock_was_released(tmp_path: Path) -> None:
    """Also one of the same name."""
    model = {"model": torch.nn.Linear(2, 1)}
    first, second = (Checkpointer(tmp_path, model) for _ in range(2))
    first.save_checkpoint(name="best")
    first.close()
    second.save_checkpoint(name="best")
    second.close()
    first.save_checkpoint(name="last")
    first.close()
    names = [one.path.name for one in first.list_checkpoints()]
    assert names == ["CKPT+best", "CKPT+last"]
