"""The program that reads checkpoints beside writers finds mixed saves, if there are any."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def readers(tmp_path):
    """Return a function that runs the program and returns its exit code and counts."""

    def run(*options):
        command = [sys.executable, "-m", "chaos", "readers", "--results", str(tmp_path), *options]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode in (0, 1), done.stderr
        results = json.loads((tmp_path / "readers.json").read_text())
        lines = (tmp_path / "readers.jsonl").read_text().splitlines()
        assert len(lines) == sum(sum(one["outcomes"].values()) for one in results.values())
        assert all(json.loads(line).get("checkpoints") for line in lines if '"ok"' in line)
        return done.returncode, results

    return run


def test_readers_see_whole_checkpoints(readers):
    """All kinds of writers are tried, with kills."""
    code, results = readers("--minutes", "0.2", "--seed", "3", "--reads", "3")
    assert code == 0, [result["problems"][:1] for result in results.values()]
    assert len(results) > 6
    assert len({read for result in results.values() for read in result["by_read"]}) > 5
    assert {kind for kind, result in results.items() if result["outcomes"]["ok"] < 3} == set()


@pytest.mark.long
def test_unprotected_readers_see_mixed_saves(readers):
    """Without handles and commit ids the program fails."""
    options = ("--minutes", "0.3", "--seed", "3", "--unprotected", "--no-kills")
    code, results = readers(*options, "--writers", "named", "--writers", "unrenamed, named")
    assert code == 1
    assert any(result["outcomes"].get("mixed") for result in results.values())
