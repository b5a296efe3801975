"""The tables of docs/moving.md: each row names a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "docs" / "moving.md").read_text(encoding="utf-8").splitlines()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in LINES
    if line.startswith("| ") and not line.startswith("| what |")
]


def test_both_tables_are_there():
    """One for SpeechBrain, and one for torchdata's loader."""
    assert len(ROWS) > 25
    assert sum(line.startswith("| what |") for line in LINES) == 2


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_row_names_a_test_that_exists(row):
    """All of its cells are filled."""
    assert len(row) == 5
    assert all(row)
    path, _, name = re.fullmatch("`(.+)`", row[-1])[1].partition("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
