"""Fixtures of the checkpointer's tests, and the figures of the long runs."""

import contextlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
TALLY = pytest.StashKey[Counter]()

# Files are made and torn apart by the thousand: in memory where there is such a place.
FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def pytest_addoption(parser):
    with contextlib.suppress(ValueError):  # another room's tests have the option too
        parser.addoption(
            "--chaos", action="store_true", help="inject as many faults as for a release"
        )


def pytest_configure(config):
    config.stash[TALLY] = Counter()


def pytest_terminal_summary(terminalreporter, config):
    tally = config.stash.get(TALLY, None)
    if not tally:
        return
    terminalreporter.section("faults of checkpoints")
    for name in (
        "states tried",
        "kills done",
        "errors injected",
        "damaged files loaded",
        "ranks lost",
    ):
        if tally[name]:
            terminalreporter.write_line(f"{name}: {tally[name]:,}")
    for name in ("losses", "silent wrong loads", "hangs"):
        terminalreporter.write_line(f"{name}: {tally[name]}")


@pytest.fixture
def tally(request):
    """Counts what the fault tests did, for the summary."""
    counter = request.config.stash.get(TALLY, None)
    if counter is None:
        counter = request.config.stash[TALLY] = Counter()
    return counter


@pytest.fixture
def times(request):
    """Returns how often to try a fault: the number per commit, or that of the long run."""
    long_run = request.config.getoption("chaos", default=False) or os.environ.get("BRAIN_CHAOS")
    return lambda per_commit, long: long if long_run else per_commit


@pytest.fixture(autouse=True)
def one_thread_of_torch():
    """Forked children must not inherit a pool of threads that are not there."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_failpoint_is_left():
    """A failpoint is put back by who set it."""
    from brain_ckpt import _fs

    yield
    left, _fs.failpoint = _fs.failpoint, None
    assert left is None


@pytest.fixture
def fast_dir():
    """A directory for many small files."""
    path = Path(tempfile.mkdtemp(prefix="brain-ckpt-", dir=FAST))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def load_helper(name):
    """Imports an underscore module of this folder."""
    full = f"ckpt_tests{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, HERE / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


@pytest.fixture(scope="session")
def work():
    """The little training whose checkpoints are put to the test."""
    return load_helper("_work")


@pytest.fixture(scope="session")
def power():
    """The simulated file system."""
    return load_helper("_power")


@pytest.fixture(scope="session")
def processes():
    """Children that are forked, watched and killed."""
    return load_helper("_processes")


@pytest.fixture(scope="session")
def speechbrain_run():
    """The save directory that SpeechBrain 1.1 wrote."""
    return HERE / "data" / "speechbrain-1.1"
