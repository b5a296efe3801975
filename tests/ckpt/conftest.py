"""Fixtures of the tests of brain-ckpt, and the summary of faults."""

import contextlib
import faulthandler
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
TALLY = pytest.StashKey[Counter]()

# The tests make thousands of files, in memory if possible.
FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def pytest_addoption(parser):
    with contextlib.suppress(ValueError):  # tests of other packages can have added it
        parser.addoption(
            "--chaos", action="store_true", help="inject as many faults as for a release"
        )


def pytest_configure(config):
    config.stash[TALLY] = Counter()


def is_long_run(config):
    return bool(config.getoption("chaos", default=False) or os.environ.get("BRAIN_CHAOS"))


def seed_of_run():
    """Return the seed of all faults; BRAIN_CHAOS_SEED sets it."""
    return int(os.environ.get("BRAIN_CHAOS_SEED", "1"))


def pytest_report_header(config):
    if is_long_run(config):
        return f"chaos: seed {seed_of_run()}; the same again with BRAIN_CHAOS_SEED={seed_of_run()}"
    return None


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Add the counts of a worker of pytest-xdist."""
    counted = getattr(node, "workeroutput", {}).get("faults of checkpoints", {})
    node.config.stash[TALLY].update(counted)


def pytest_sessionfinish(session):
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["faults of checkpoints"] = dict(session.config.stash[TALLY])


COUNTED = {
    "states tried": "power-loss states tried",
    "distinct states": "of them distinct",
    "kills in training": "kills done in training",
    "kills done": "kills done, all in all",
    "errors injected": "errors of the disk injected",
    "damaged files loaded": "damaged files tried",
    "ranks lost": "ranks lost",
    "deaths of a store": "object stores that died",
    "losses": "losses",
    "silent wrong loads": "silent wrong loads",
    "hangs": "hangs",
}
MUST_BE_ZERO = ("losses", "silent wrong loads", "hangs")


def pytest_terminal_summary(terminalreporter, config):
    tally = config.stash.get(TALLY, None)
    if not tally:
        return
    terminalreporter.section("faults of checkpoints")
    if is_long_run(config):
        terminalreporter.write_line(f"seed: {seed_of_run()}")
    for name, shown in COUNTED.items():
        if tally[name] or name in MUST_BE_ZERO:
            terminalreporter.write_line(f"{shown}: {tally[name]:,}")


class Progress:
    """Prints the progress of a test in a long run, and holds its seed."""

    def __init__(self, request):
        self.seed = f"{seed_of_run()} {request.node.name}"
        self._name = request.node.name
        self._capture = request.config.pluginmanager.getplugin("capturemanager")
        self._shown = is_long_run(request.config)
        self._started = self._said = time.monotonic()
        if self._shown:  # long tests must not dump tracebacks
            faulthandler.cancel_dump_traceback_later()

    def __call__(self, what, done, total):
        now = time.monotonic()
        if self._shown and (now - self._said > 10 or done >= total):
            self._said = now
            with self._capture.global_and_fixture_disabled():
                passed_s = now - self._started
                bar = "#" * (20 * done // total)
                sys.stderr.write(
                    f"\n  {self._name} [{bar:<20}] {done:,} of {total:,} {what}, {passed_s:.0f} s"
                )
                sys.stderr.flush()


@pytest.fixture
def progress(request):
    """Return a function that is called with the progress of a test."""
    return Progress(request)


@pytest.fixture
def tally(request):
    """Return the counts of faults for the summary."""
    counter = request.config.stash.get(TALLY, None)
    if counter is None:
        counter = request.config.stash[TALLY] = Counter()
    return counter


@pytest.fixture
def times(request):
    """Return a function that chooses between the counts of a short and a long run."""
    long_run = is_long_run(request.config)
    return lambda per_commit, long: long if long_run else per_commit


@pytest.fixture(autouse=True)
def one_thread_of_torch():
    """Use one thread, because forked children do not inherit a thread pool."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_failpoint_is_left():
    """Check that every test resets its failpoint."""
    from brain_ckpt.storage import filesystem

    yield
    left, filesystem.failpoint = filesystem.failpoint, None
    assert left is None


@pytest.fixture
def fast_dir():
    """Return a directory for many small files, in memory if possible."""
    path = Path(tempfile.mkdtemp(prefix="brain-ckpt-", dir=FAST))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def load_helper(name):
    """Import a module of tests/ckpt/helpers."""
    full = f"ckpt_test_helpers_{name}"
    if full not in sys.modules:
        path = HERE / "helpers" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(full, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


@pytest.fixture(scope="session")
def workloads():
    """Runs whose state is a number, and what they save."""
    return load_helper("workloads")


@pytest.fixture(scope="session")
def power():
    """The simulated file system."""
    return load_helper("power")


@pytest.fixture(scope="session")
def processes():
    """Forked children that are watched and killed."""
    return load_helper("processes")


@pytest.fixture(scope="session")
def rank_programs():
    """What each rank of a test runs."""
    return load_helper("ranks")


@pytest.fixture(scope="session")
def training():
    """A training loop that can be killed anywhere."""
    return load_helper("training")


@pytest.fixture(scope="session")
def manifests():
    """Changes of checkpoints with matching checksums."""
    return load_helper("manifests")


@pytest.fixture(scope="session")
def states():
    """An object with a given state, and the comparison of states."""
    return load_helper("states")


@pytest.fixture(scope="session")
def speechbrain_run():
    """Return the save directory that SpeechBrain 1.1 wrote."""
    return HERE / "data" / "speechbrain-1.1"
