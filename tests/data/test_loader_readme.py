"""The loader's example in the README, run as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[2] / "packages" / "brain-data" / "README.md"


def test_the_loaders_example_prints_what_the_readme_says(
    tmp_path: Any, monkeypatch: Any, capsys: Any
) -> None:
    """The first two blocks of its section: the program and its output."""
    section = README.read_text(encoding="utf-8").split("## Loader and samplers")[1]
    program, printed = re.findall(r"```(?:python|text)\n(.*?)```", section, re.DOTALL)[:2]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SB_GLOBAL_SEED", raising=False)
    exec(compile(program, str(README), "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out == printed
