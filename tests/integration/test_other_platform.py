"""Systems that lack what Linux has: the fallbacks, forced here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("other_platform_script.py")


def test_a_run_stops_and_resumes_exactly_without_what_only_linux_and_macos_have(tmp_path):
    """No fork, no record locks, no /proc, no signal but SIGTERM and SIGINT, no open directories."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "resumed exactly"
