"""Every public function that replaces one of SpeechBrain's takes what that takes, and returns it.

This needs SpeechBrain (the dependency group ``parity``), and is skipped without it. What it found
is tested beside each function, without SpeechBrain. ``PARITY_RUNS`` sets the number of calls.
"""

from __future__ import annotations

import logging
import os
import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        import speechbrain  # noqa: F401 - is it there, and does it load?
    except (ImportError, OSError) as error:
        pytest.skip(f"SpeechBrain does not load here: {error}", allow_module_level=True)

import data_programs
import other_programs

from parity import compare

PROGRAMS = {**data_programs.PROGRAMS, **other_programs.PROGRAMS}
RUNS = int(os.environ.get("PARITY_RUNS", "200"))


@pytest.mark.parametrize("name", PROGRAMS)
def test_random_calls_return_what_speechbrain_returns(name, capsys):
    """Where SpeechBrain returns a value; where it raises, ours may do anything."""
    logging.disable(logging.CRITICAL)
    try:
        found, raised = compare(PROGRAMS[name], RUNS)
    finally:
        logging.disable(logging.NOTSET)
    with capsys.disabled():
        print(f"\n{name}: {RUNS} runs, {raised} raised in SpeechBrain, {len(found)} differences")  # noqa: T201
    assert found[:3] == []
