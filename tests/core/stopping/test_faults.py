"""How all ranks end after a fault of one of them, and whether the run then resumes exactly.

By default a few faults on 2 and 3 ranks are tested; with ``BRAIN_CHAOS=1`` all of them, with a
table at the end.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest

CHAOS = bool(os.environ.get("BRAIN_CHAOS"))
STOP_TIMEOUT_S = 3.0
# Allows for a busy machine, and for the search for the rank that does not answer.
SLACK_S = 8.0


def _load():
    spec = importlib.util.spec_from_file_location("_faults", Path(__file__).with_name("_faults.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_faults = _load()
Fault = _faults.Fault

# The number of the call that a fault hits; by default the second.
NTH = {
    "make_dataloader": 1,
    "on_fit_start": 1,
    "init_optimizers": 1,
    "on_evaluate_start": 1,
    "on_stage_start TEST": 1,
    "on_stage_end TEST": 1,
    "on_stage_end VALID": 1,
    "dataset": 17,
    "evaluate_batch": 7,
    "compute_forward VALID": 7,
    "compute_objectives VALID": 7,
    "compute_forward TRAIN": 5,
    "compute_objectives TRAIN": 5,
    "fit_batch": 11,
    "train logger": 1,
}


def _at(where):
    return NTH.get(where, 2)


IN_HOOKS = [Fault("raises", where, _at(where)) for where in _faults.FIT_HOOKS + _faults.TEST_HOOKS]
IN_PARTS = [Fault("raises", where, _at(where)) for where in _faults.PARTS]
ON_THE_FIRST = [
    Fault("raises", where, _at(where), "first")
    for where in ("compute_forward TRAIN", "saver", "on_stage_end VALID", "on_evaluate_start")
]
LOST = [
    Fault(what, where, nth, target, asynchronous)
    for what in ("SIGKILL", "SIGSTOP")
    for where, nth, target, asynchronous in [
        ("on_fit_start", 1, "last", False),
        ("compute_forward TRAIN", 5, "last", False),
        ("compute_forward TRAIN", 5, "first", False),
        ("saver", 3, "last", False),
        ("saver", 3, "last", True),
        ("evaluate_batch", 7, "last", False),
        ("compute_forward TEST", 2, "last", False),
    ]
    if (what, target) != ("SIGSTOP", "first")
]
SIGNALLED = [
    Fault("SIGTERM", where, nth, target, asynchronous)
    for where, nth in [
        ("compute_forward TRAIN", 3),
        ("saver", 3),
        ("evaluate_batch", 7),
        ("on_stage_end VALID", 1),
        ("compute_forward TEST", 2),
    ]
    for target in ("last", "all")
    for asynchronous in ((False, True) if where == "saver" else (False,))
]
OTHERS = [
    Fault("SIGTERM", "compute_forward TRAIN", 3, "all", workers=2),
    Fault("SIGUSR1", "compute_forward TRAIN", 3, "last"),
    Fault("SIGUSR1", "on_fit_batch_end", 9, "all", workers=1),
    Fault("SIGINT", "compute_forward TRAIN", 3, "last"),
    Fault("SIGINT", "compute_forward TRAIN", 3, "all", workers=2),
    Fault("NaN", "compute_objectives TRAIN", 5),
    Fault("NaN", "compute_objectives TRAIN", 5, "first"),
    Fault("sys.exit", "on_stage_end TRAIN", 2),
    Fault("out of memory", "compute_forward TRAIN", 5),
    Fault("out of memory", "optimizer.step", 5, "first"),
    Fault("raises", "dataset", 5, workers=2),
    Fault("raises and lives on", "on_fit_batch_end", 4),
]
EVERY = [*IN_HOOKS, *IN_PARTS, *ON_THE_FIRST, *LOST, *SIGNALLED, *OTHERS]
FEW = [
    (2, Fault("SIGKILL", "saver", 3)),
    (2, Fault("SIGSTOP", "compute_forward TRAIN", 5)),
    (2, Fault("SIGTERM", "saver", 3, "all", asynchronous=True)),
    (2, Fault("out of memory", "compute_forward TRAIN", 5)),
    (3, Fault("raises", "compute_forward VALID", 7)),
    (3, Fault("SIGKILL", "compute_forward TRAIN", 5, "first")),
]
CASES = [(world, fault) for world in (2, 3) for fault in EVERY] if CHAOS else FEW


@pytest.fixture(scope="module")
def faults(_forkserver, tmp_path_factory):
    """Return a `Faults` in a folder of this module."""
    return _faults.Faults(_forkserver, tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def undisturbed(faults):
    """Return a function that returns the digest of a run without a fault."""
    known = {}

    def run(world_size, variant):
        if (world_size, variant) not in known:
            save = f"undisturbed-{world_size}-{variant}"
            endings = faults.run(world_size, save, variant=variant)
            assert [e.how for e in endings] == ["finished"] * world_size, endings[0].printed
            assert len({e.state for e in endings}) == 1
            known[world_size, variant] = endings[0].state
        return known[world_size, variant]

    return run


@pytest.fixture(scope="module")
def table(request):
    """Return a table of results, printed at the end of a long run."""
    plugins = request.config.pluginmanager
    table = Table(plugins.get_plugin("terminalreporter"), plugins.get_plugin("capturemanager"))
    yield table
    table.print(["", HEADER, *table.rows])


class Table:
    """Rows of results."""

    def __init__(self, reporter, capture):
        self.rows, self._reporter, self._capture = [], reporter, capture

    def add(self, row):
        self.rows.append(row)
        self.print([f" {len(self.rows)}/{len(CASES)} {row}"])

    def print(self, lines):
        if CHAOS:
            with self._capture.global_and_fixture_disabled():
                for line in lines:
                    self._reporter.write_line(line)


HEADER = (
    "| ranks | fault | exit codes | seconds until all others ended | how they ended | restart |"
)


def _row(world_size, fault, endings, equal):
    hit = _hit(world_size, fault)
    others = [e for rank, e in enumerate(endings) if rank not in hit] or endings
    how = " / ".join(sorted({f"{e.how}: {e.text[:60]}" if e.text else e.how for e in others}))
    seconds = max(e.seconds for e in others)
    codes = ", ".join("stopped" if e.code is None else str(e.code) for e in endings)
    return (
        f"| {world_size} | {fault} | {codes} | {seconds:.1f} | {how} | "
        f"{'bit-equal' if equal else 'DIFFERS'} |"
    )


def _hit(world_size, fault):
    return {"last": {world_size - 1}, "first": {0}, "all": set(range(world_size))}[fault.target]


@pytest.mark.parametrize(("world_size", "fault"), CASES, ids=str)
def test_all_ranks_end_soon_and_the_next_run_equals_an_undisturbed_one(
    world_size, fault, faults, undisturbed, table
):
    """No rank hangs, and each exit code states whether to restart the run."""
    expected = undisturbed(world_size, fault.variant())
    save = f"{world_size}-{fault}".replace(" ", "-").replace("#", "")
    if fault.where == "loader of a state":
        faults.run(world_size, save, Fault("SIGTERM", "on_fit_batch_end", 5, "all"))
        fault = Fault(fault.what, fault.where, 1, fault.target)
    timeout_s = STOP_TIMEOUT_S if fault.what == "SIGSTOP" else 20.0
    endings = faults.run(world_size, save, fault, fault.variant(), timeout_s)
    again = faults.run(world_size, save, variant=fault.variant())
    equal = [e.state for e in again] == [expected] * world_size
    table.add(_row(world_size, fault, endings, equal))
    assert_ranks_end_as_expected(world_size, fault, endings)
    assert equal, "\n".join(e.printed[-2000:] for e in again)


@pytest.mark.parametrize("fault", [] if CHAOS else (IN_HOOKS + IN_PARTS)[::5], ids=str)
def test_an_exception_in_any_hook_of_one_rank_is_raised_on_the_other(fault, faults):
    """The other rank ends at once, and its error contains the number of the rank."""
    endings = faults.run(2, f"only-{fault}".replace(" ", "-"), fault, fault.variant())
    assert_ranks_end_as_expected(2, fault, endings)


def assert_ranks_end_as_expected(world_size, fault, endings):
    printed = "\n".join(e.printed[-3000:] for e in endings)
    hit = _hit(world_size, fault)
    others = [e for rank, e in enumerate(endings) if rank not in hit]
    assert all(e.code is not None for e in others), f"a rank hung\n{printed}"
    limit = {"SIGSTOP": STOP_TIMEOUT_S, "raises and lives on": 11.0}.get(fault.what, 0.0)
    assert max((e.seconds for e in others), default=0.0) < limit + SLACK_S, printed
    ranks = ", ".join(map(str, sorted(hit)))
    if fault.what == "raises and lives on":
        assert {e.code for e in others} == {1}
        assert all("raised KeyError, and its process lives on" in e.printed for e in others)
    elif fault.where == "on_stage_end TEST":  # no collective follows in which the others would fail
        assert {endings[rank].code for rank in hit} == {1}, printed
    elif fault.what in ("raises", "out of memory"):
        assert {e.code for e in endings} == {1}, printed
        words = "CUDA out of memory" if fault.what == "out of memory" else "a fault"
        assert all(words in e.text for e in endings), printed
        assert all(f"on rank {ranks} of {world_size}" in e.text for e in others), printed
    elif fault.what == "sys.exit":
        assert {e.code for e in endings} == {3}, printed
    elif fault.what in ("SIGKILL", "SIGSTOP"):
        assert [endings[rank].code for rank in hit] == [-9 if fault.what == "SIGKILL" else None]
        assert {e.code for e in others} == {1}, printed
        # On a busy machine, another rank that ends slowly may be named, too.
        named = re.compile(rf"rank\(s\) (\d, )?{ranks}(, \d)? did not")
        assert all(named.search(e.text) for e in others), printed
    elif fault.what == "NaN":
        assert {e.how for e in endings} == {"ValueError"}, printed
        assert len({e.text for e in endings}) == 1
    else:
        assert {e.code for e in endings} == {130 if fault.what == "SIGINT" else 75}, printed
        assert len({e.text for e in endings}) == 1
        screens = "".join(e.printed for e in endings)
        assert screens.count("INFO Stopping: SIG") == 1, screens
        assert not re.search("Traceback|WARNING|ERROR|CRITICAL", screens), screens
