"""The loader's example in the README, run as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

README = Path(__file__).parents[2] / "packages" / "brain-data" / "README.md"


def test_the_loaders_example_prints_what_the_readme_says(tmp_path: Any) -> None:
    """The first two blocks of its section: the program and its output."""
    section = README.read_text(encoding="utf-8").split("## Loader and samplers")[1]
    program, printed = re.findall(r"```(?:python|text)\n(.*?)```", section, re.DOTALL)[:2]
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, check=True, timeout=120, capture_output=True, text=True,
    )  # fmt: skip
    assert run.stdout == printed
