"""What benchmarks say about their aims."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest


@pytest.fixture
def verdict(repository):
    """Return the module that collects the rows of benchmarks."""
    path = repository.root / "benchmarks/_verdict.py"
    spec = importlib.util.spec_from_file_location("_verdict", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "_verdict", module)  # dataclasses look it up
        spec.loader.exec_module(module)
        yield module


def test_an_aim_is_of_the_ratio_where_there_is_a_peer(verdict):
    """A bound is an upper one unless it is said to be a lower one."""
    row = verdict.Row
    assert row("a save", 1.1, "s", 1.1, "raw", 1.0).is_met
    assert not row("a save", 1.2, "s", 1.1, "raw", 1.0).is_met
    assert row("a load", 0.2, "s", 1.1).is_met
    assert not row("a speed", 94.0, "%", 95, at_least=True).is_met


def test_the_rows_of_several_programs_are_one_table(verdict, tmp_path, monkeypatch, capsys):
    """The table and the JSON say of each aim whether it is met."""
    rows = tmp_path / "rows.jsonl"
    monkeypatch.setenv("BRAIN_BENCH_ROWS", str(rows))
    verdict.report("a step", 12.0, "µs", 1.04, "bare", 10.0)
    verdict.report("an order", 2.0, "ms", 10)
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["", str(rows), "--json", str(tmp_path / "out/bench.json")])
    verdict.main()
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("|")[-3].strip() for line in printed[2:4]] == ["missed", "met"]
    assert printed[4].startswith("1 of 2 aims met.")
    found = json.loads((tmp_path / "out/bench.json").read_text(encoding="utf-8"))
    assert [(row["ratio"], row["met"]) for row in found["rows"]] == [(1.2, False), (None, True)]


def test_the_table_replaces_only_the_one_of_the_page(verdict, repository):
    """What is written by hand stays; a page without a place for the table is refused."""
    page = (repository.root / "docs/benchmarks.md").read_text(encoding="utf-8")
    rows = [verdict.Row("a step", 12.0, "µs", 1.04, "bare", 10.0, program="core_loop.py")]
    changed = verdict.with_table(page, rows)
    assert "| a step | 12 µs | bare: 10 µs | 1.20  | ≤ 1.04 | missed  | `core_loop.py` |" in changed
    assert changed.partition(verdict.BEGIN)[0] == page.partition(verdict.BEGIN)[0]
    assert changed.partition(verdict.END)[2] == page.partition(verdict.END)[2]
    assert verdict.with_table(changed, rows) == changed
    with pytest.raises(ValueError, match="once each; add the missing one"):
        verdict.with_table("# Benchmarks", rows)
