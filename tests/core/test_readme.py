"""The README of brain-core."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "packages" / "brain-core" / "README.md"


def test_the_example_of_the_readme_trains_and_resumes(tmp_path):
    """The README's example runs twice; the second run finds the training finished."""
    code, *_ = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    for _ in range(2):
        run = [sys.executable, "-W", "error", "-c", code]
        printed = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert printed.stdout == "True\n", printed.stderr


def test_the_example_of_the_callbacks_trains(tmp_path):
    """The section's code continues the first example."""
    first, callbacks, *_ = re.findall(
        r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL
    )
    names = re.findall(r"\b([A-Z]\w+)\(", callbacks.split("callbacks=[")[1])
    code = f"{first}\nfrom brain_core import {', '.join(names)}\n"
    code += callbacks.replace("results/save", "results/other")
    code += "brain.fit(range(2), data, data, train_loader_kwargs={'batch_size': 64})\n"
    code += "print(brain.total_optimizer_steps)\n"
    run = [sys.executable, "-W", "error", "-c", code]
    printed = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert printed.stdout == "True\n8\n", printed.stderr
