"""Fixtures for the tests of all packages: run a function on several gloo ranks."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import time
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items):
    """Skip tests that are marked as long, unless BRAIN_CHAOS is set."""
    if os.environ.get("BRAIN_CHAOS"):
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="takes long: set BRAIN_CHAOS=1"))


def pytest_runtest_setup():
    """Begin each test without the seed that `seed_everything` leaves in the environment."""
    os.environ.pop("SB_GLOBAL_SEED", None)


@pytest.fixture(scope="session")
def _forkserver():
    # The server imports once what the ranks use, and forks each rank: 50 ms instead of 3 s.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "pytest",
            "torch._dynamo",
            "torch.distributed.checkpoint",
            "torch.distributed.fsdp",
            "yaml",
            # A package that is not installed is skipped.
            "brain_dist",
            "brain_ckpt",
            "brain_core",
        ]
    )
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    former = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        first = context.Process(target=int)
        first.start()
        first.join()
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return context


@pytest.fixture
def ranks(_forkserver, request, tmp_path):
    """Return a function that runs another one on several ranks and returns their results."""
    return Ranks(_forkserver, Path(request.path), tmp_path)


class Ranks:
    """Runs a function of the test's module on a number of ranks, with arguments."""

    def __init__(self, context, test_file: Path, folder: Path):
        self._context = context
        self._test_file = test_file
        self._folder = folder
        self._runs = 0

    def __call__(self, function, world_size, *args, **options):
        outcomes = self.outcomes(function, world_size, *args, **options)
        for rank, (kind, value) in enumerate(outcomes):
            if kind == "raised" and "FSDP2 on the CPU needs a later torch" in value:
                pytest.skip("FSDP2 on the CPU needs a later torch")
            assert kind == "returned", f"rank {rank} {kind}: {value}"
        return [value for _, value in outcomes]

    def outcomes(self, function, world_size, *args, timeout_s=60.0, group=True, environ=None):
        """Return for each rank ("returned", value), ("raised", traceback) or ("exited", code)."""
        self._runs += 1
        store = self._folder / f"store-{self._runs}" if group else None
        started = []
        for rank in range(world_size):
            receiver, sender = self._context.Pipe()
            env = {k: v.format(rank=rank) for k, v in (environ or {}).items()}
            job = {
                "sender": sender,
                "function": (str(self._test_file), function.__name__, args),
                "group": (store, rank, world_size),
                "environ": env,
            }
            script = str(Path(__file__).with_name("_rank.py"))
            process = self._context.Process(
                target=runpy.run_path, args=(script, {"JOB": job}, "rank")
            )
            process.start()
            sender.close()
            started.append((process, receiver))
        deadline = time.monotonic() + timeout_s
        try:
            return [_outcome(process, receiver, deadline) for process, receiver in started]
        finally:
            for process, receiver in started:
                process.kill()
                process.join()
                process.close()
                receiver.close()


def _outcome(process, receiver, deadline):
    if not receiver.poll(max(0.0, deadline - time.monotonic())):
        return ("hung", None)
    try:
        return receiver.recv()
    except EOFError:
        process.join(10)
        return ("exited", process.exitcode)
