"""The demo with small settings: trained, tested, killed and resumed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

RECIPE = Path(__file__).parents[2] / "examples/g2p"
SMALL = (
    *("--train_words=700", "--held_out_words=60", "--number_of_epochs=3", "--hidden_size=24"),
    *("--max_batch_length=300", "--ckpt_interval_steps=5", "--warm_up_steps=10"),
)


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    """Start the recipe as the README does, with one thread."""
    command = [
        sys.executable,
        str(RECIPE / "train.py"),
        str(RECIPE / "hparams.yaml"),
        *SMALL,
        *more,
    ]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell starts background processes with SIGINT ignored, and they inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait until a run ends without an error; return its output."""
    printed, _ = process.communicate(timeout=180)
    assert process.returncode == 0, printed[-3000:]
    return printed


def error_rate(printed: str) -> float:
    """Return the printed error rate on unseen words."""
    return float(re.search(r"Phoneme error rate on 60 unseen words: ([\d.]+) %", printed)[1])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return the folder and the output of a run that is not stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    printed = finish(start(folder))
    return folder / "results/g2p/1986", printed


def stop_in_epoch(epoch: int, number: int, folder: Path) -> str:
    """Start the recipe, and send a signal once an epoch has a checkpoint; return the output."""
    process = start(folder)
    log, save = (folder / "results/g2p/1986" / name for name in ("train_log.txt", "save"))
    deadline = time.monotonic() + 180

    def wait_until(happened: Callable[[], bool]) -> None:
        while not happened():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def newest() -> str:
        return max((path.name for path in save.glob("CKPT*")), default="")

    try:
        wait_until(lambda: log.exists() and f"epoch: {epoch - 1}," in log.read_text())
        before = newest()
        wait_until(lambda: newest() > before)
        assert f"epoch: {epoch}," not in log.read_text(), "too fast to be stopped in this epoch"
        process.send_signal(number)
        printed, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0, printed[-3000:]
    return printed


def test_a_run_that_is_stopped_twice_resumes_and_ends_the_same(tmp_path, undisturbed):
    """After Ctrl-C and SIGKILL, the same command logs where it resumes."""
    printed = stop_in_epoch(2, signal.SIGINT, tmp_path)
    assert "The same command resumes this run." in printed
    printed = stop_in_epoch(3, signal.SIGKILL, tmp_path)
    assert re.search(r"Resuming from CKPT\+", printed)
    printed = finish(start(tmp_path))
    assert re.search(r"Resuming from CKPT\+", printed)
    folder, expected = undisturbed
    resumed = tmp_path / "results/g2p/1986"
    assert error_rate(printed) == error_rate(expected)
    for name in ("train_log.txt", "unseen_words.txt"):
        assert (resumed / name).read_text() == (folder / name).read_text()


def test_a_run_writes_its_log_picture_table_and_checkpoint(undisturbed):
    """The folder has the files that the README lists."""
    folder, printed = undisturbed
    for name in ("train_log.txt", "log.txt", "env.log", "hyperparams.yaml", "train.py", "save"):
        assert (folder / name).exists(), name
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len((folder / "unseen_words.txt").read_text().splitlines()) == 61
    assert "Results: results/g2p/1986/" in printed
    assert 0 < error_rate(printed) <= 120


def test_no_held_out_word_is_trained_on(undisturbed):
    """The three manifests share no word, so training has no variant of a test word."""
    folder, _ = undisturbed
    parts = [
        set(json.loads((folder / f"{p}.json").read_text())) for p in ("train", "valid", "test")
    ]
    assert [len(part) for part in parts] == [700, 60, 60]
    assert len(set.union(*parts)) == 820


@pytest.mark.long
def test_full_sets_what_is_not_given(tmp_path):
    """Other options on the command line take precedence over ``--full``."""
    finish(start(tmp_path, "--full", "--test_only", "--output_folder=out"))
    resolved = (tmp_path / "out/hyperparams.yaml").read_text()
    assert re.search(r"^dropout: 0.2$", resolved, flags=re.MULTILINE)
    assert re.search(r"^hidden_size: 24$", resolved, flags=re.MULTILINE)
