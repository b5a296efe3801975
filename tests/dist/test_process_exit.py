"""The exit code of a rank that used gloo is its script's."""

import json
import os
import re
import signal
import subprocess
import sys
from itertools import cycle, islice, product
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("exiting_script.py")
COLLECTIVES = ("all_gather", "barrier", "backward", "destroy")
PENDING = (
    pytest.param("pending_all_reduce", marks=pytest.mark.long),
    "pending_vote",
    "interrupted_barrier",
    pytest.param("joined_at_exit", marks=pytest.mark.long),
)
CODES = (0, 3, 1)  # the end of the script, sys.exit(3), an exception


def _run(runs, *options, environ=None):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), "--runs", " ".join(runs), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environ or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _forked_exit_codes(runs, *options):
    """Return the exit codes of both ranks of each run, forks of one process, and their stderr."""
    process = _run(runs, *options)
    output, errors = process.communicate(timeout=60 + 30 * len(runs))
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1]), errors  # gloo of torch 2.9 prints, too


def _fresh_exit_codes(run, *options):
    """Return the exit codes of two ranks that are started as a launcher does."""
    names = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": run.split("/")[2]}
    ranks = [
        _run([run], *options, environ={**names, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    for rank in ranks:
        rank.communicate(timeout=120)
    return [rank.returncode for rank in ranks]


def test_a_script_that_ends_behind_a_collective_has_its_own_exit_code(free_port):
    """After a collective of torch's, one of this package's, a backward, a destroyed group."""
    expected = list(zip(COLLECTIVES, cycle(CODES), strict=False))
    codes, errors = _forked_exit_codes([f"{name}/{code}/{free_port()}" for name, code in expected])
    assert codes == [[code] * 2 for _, code in expected], errors


def test_a_worker_that_waits_for_the_gil_does_not_abort_the_process(free_port):
    """The worker of gloo holds the last reference to an operation, and the script ends."""
    runs = [f"worker_holds_last_reference/{code}/{free_port()}" for code in CODES]
    codes, errors = _forked_exit_codes(runs)
    assert codes == [[code] * 2 for code in CODES], errors


@pytest.mark.parametrize("scenario", PENDING)
def test_a_pending_operation_neither_delays_the_exit_nor_changes_its_code(free_port, scenario):
    """Rank 1 waits for the end of rank 0, which does not wait for the operation's timeout."""
    codes, errors = _forked_exit_codes([f"{scenario}/{code}/{free_port()}" for code in CODES])
    assert codes == [[code] * 2 for code in CODES], errors


def test_scripts_that_are_out_of_step_end_with_the_same_words(free_port):
    """The rank whose process holds the store ends after the other has read from it."""
    codes, errors = _forked_exit_codes([f"out_of_step/0/{free_port()}"])
    assert codes == [[1, 1]], errors
    place = rf"\S*{re.escape(SCRIPT.name)}:\d+"
    words = rf"rank 0 is in evaluate\(\) at {place}, rank 1 in fit\(\) at {place}: call"
    assert len(re.findall(words, errors)) == 2, errors


def test_a_signal_behind_a_collective_ends_a_script_as_asked(free_port):
    """By the signal's default action, or with the code for requeueing."""
    runs = [f"terminated/0/{free_port()}", f"stopped/75/{free_port()}"]
    codes, errors = _forked_exit_codes(runs)
    assert codes == [[-signal.SIGTERM] * 2, [75] * 2], errors


@pytest.mark.long
def test_without_the_exit_handler_such_a_worker_aborts_the_process(free_port):
    """Where torch no longer aborts here, the exit handler can be removed."""
    runs = [f"worker_holds_last_reference/0/{free_port()}" for _ in range(10)]
    codes, _ = _forked_exit_codes(runs, "--without-handler")
    assert -signal.SIGABRT in [code for codes_of_run in codes for code in codes_of_run]


@pytest.mark.long
def test_a_hundred_scripts_of_two_ranks_have_their_own_exit_codes(free_port):
    """Started afresh, as a launcher starts them."""
    expected = list(islice(cycle(product(COLLECTIVES, CODES)), 100))
    codes = [_fresh_exit_codes(f"{name}/{code}/{free_port()}") for name, code in expected]
    assert codes == [[code] * 2 for _, code in expected]


@pytest.mark.long
def test_two_thousand_scripts_of_two_ranks_have_their_own_exit_codes(free_port):
    """Behind a collective, an exception, sys.exit(3) and SIGTERM."""
    ends = [*product(COLLECTIVES, CODES), ("terminated", -signal.SIGTERM), ("stopped", 75)]
    expected = list(islice(cycle(ends), 2000))
    wrong = []
    for start in range(0, len(expected), 50):
        part = expected[start : start + 50]
        runs = [f"{name}/{max(code, 0)}/{free_port()}" for name, code in part]
        codes, _ = _forked_exit_codes(runs)
        wrong += [(end, got) for end, got in zip(part, codes, strict=True) if got != [end[1]] * 2]
    assert wrong == []
