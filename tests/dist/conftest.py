"""Fixtures of brain-dist's tests; a test fails if it leaves a group, a thread or autocast on."""

from __future__ import annotations

import os
import socket
import threading

import pytest
import torch
from torch import distributed


@pytest.fixture(autouse=True)
def _nothing_left_behind(monkeypatch):
    for name in [n for n in os.environ if n.startswith(("SLURM_", "JSM_", "MASTER_"))]:
        monkeypatch.delenv(name)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    threads = set(threading.enumerate())
    yield
    assert not distributed.is_initialized(), "a test left its process group"
    assert not torch.is_autocast_enabled("cpu"), "a test left autocast on"
    assert set(threading.enumerate()) <= threads, "a test left a thread"


@pytest.fixture
def group_of_one(tmp_path):
    """Make a gloo group of this process only."""
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture
def free_port():
    """Return a function that finds a free port of this machine."""

    def find():
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            return found.getsockname()[1]

    return find
