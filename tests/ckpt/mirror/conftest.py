"""Fixtures of the tests of mirrors: S3 on loopback."""

import importlib.util
import sys
import uuid
from pathlib import Path

import pytest
import torch

HELPERS = Path(__file__).parents[1] / "helpers"

pytest.importorskip("obstore")


@pytest.fixture(scope="session")
def bucket():
    """The helpers for S3 on loopback."""
    name = "ckpt_test_helpers_bucket"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HELPERS / "bucket.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def server(bucket):
    """moto's server."""
    pytest.importorskip("moto.server")
    started = bucket.Server()
    yield started
    started.close()


@pytest.fixture
def s3(server, bucket):
    """Return the URL of a new mirror on moto's server, with the credentials in the environment."""
    with bucket.environment(server.environment()):
        yield server.make_bucket()


@pytest.fixture
def proxy(server, bucket, s3):
    """Return a proxy in front of the server, which clients use from now on; see `s3`."""
    started = bucket.Proxy(server.port)
    with bucket.environment(server.environment(started.port)):
        yield started
    started.close()


@pytest.fixture
def fast_retries(monkeypatch):
    """Make the pauses between attempts short."""
    from brain_ckpt.mirror import retries

    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(retries, "LONGEST_PAUSE_S", 0.1)


@pytest.fixture
def local(tmp_path):
    """Return the URL of a new mirror on this disk, for what needs no server."""
    return f"file://{tmp_path}/objects-{uuid.uuid4().hex[:6]}"


@pytest.fixture
def make(tmp_path):
    """Return a function that makes a checkpointer of a model in a new directory."""
    from brain_ckpt import Checkpointer

    def made(directory="save", value=0.0, size=2, **options):
        model = torch.nn.Linear(size, 1)
        torch.nn.init.constant_(model.weight, value)
        checkpointer = Checkpointer(tmp_path / directory, {"model": model}, **options)
        checkpointer.model = model
        return checkpointer

    return made
