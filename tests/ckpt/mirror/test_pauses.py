"""An upload beside training pauses after each part; nobody waits for these pauses."""

import logging
import time
from pathlib import Path

import pytest

from brain_ckpt.mirror import uploader
from brain_ckpt.storage.checksum import CHUNK_BYTES


@pytest.fixture
def save(make, local, monkeypatch, caplog, bucket):
    """Return a function that saves a checkpoint of several parts, and waits for a first pause.

    Without an end of the pauses, it would never be in the mirror.
    """
    caplog.set_level(logging.INFO)
    checkpointer = make(size=CHUNK_BYTES // 2, mirror=local)  # two parts of float32
    checkpointer.save_checkpoint(name="zero")
    uploads = checkpointer._copies._uploader
    bucket.wait_until(lambda: uploads._done == uploads._requested)
    monkeypatch.setattr(uploader, "_PAUSE_PER_PART", 1e9)
    parts = Path(local.removeprefix("file://"), "parts")
    before = set(parts.iterdir())

    def saved(name):
        checkpointer.save_checkpoint(name=name)
        bucket.wait_until(lambda: set(parts.iterdir()) > before)
        return checkpointer

    return saved


def copied(caplog):
    return [record.args[0] for record in caplog.records if "Copied" in record.msg]


def test_an_upload_pauses_while_nobody_waits_for_it(save, caplog):
    """One part is there, and the manifest is not."""
    checkpointer = save("one")
    time.sleep(0.3)  # many times what the second part needs
    assert copied(caplog) == []
    checkpointer.close()


def test_the_end_of_a_run_ends_the_pauses(save, caplog):
    """`close` returns when all parts and the manifest are there."""
    save("one").close()
    assert copied(caplog) == ["CKPT+one"]


def test_a_newer_save_ends_the_pauses(save, caplog, bucket):
    """An upload that is slower than the saves does not pause."""
    checkpointer = save("one")
    checkpointer.save_checkpoint(name="two")
    bucket.wait_until(lambda: copied(caplog) == ["CKPT+one"])
    checkpointer.close()
    assert copied(caplog) == ["CKPT+one", "CKPT+two"]
