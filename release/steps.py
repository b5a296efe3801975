"""Running a program as one step of a release."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ReleaseError", "run"]


class ReleaseError(Exception):
    """A step did not do what it should."""


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path,
    environ: Mapping[str, str] | None = None,
    expected_code: int = 0,
) -> str:
    """Run a program and return what it printed.

    Raises
    ------
    ReleaseError
        If its exit code is another than expected.
    """
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        cwd=cwd,
        env={**os.environ, **(environ or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    if done.returncode != expected_code:
        shown = " ".join([Path(words[0]).name, *words[1:]])
        raise ReleaseError(
            f"`{shown}` exited with {done.returncode} instead of {expected_code}:\n{done.stdout}"
        )
    return done.stdout
