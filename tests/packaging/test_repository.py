"""The repository keeps its own rules."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (ast.Module, ast.ClassDef, *FUNCTIONS)
MODULE_LINES, FUNCTION_LINES = 400, 50
PROGRAMS = ("chaos", "release", "benchmarks", "examples")


def test_the_noxfile_is_short_and_each_session_says_what_it_does(repository):
    """The sessions that CONTRIBUTING.md and CI rely on are there."""
    text = (repository.root / "noxfile.py").read_text(encoding="utf-8")
    assert text.count("\n") < 320
    sessions = [
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
        and any("nox.session" in ast.unparse(each) for each in node.decorator_list)
    ]
    names = {node.name for node in sessions}
    assert names >= {
        "tests",
        "isolated",
        "meta",
        "matrix",
        "minimums",
        "release",
        "lint",
        "types",
        "wheels",
        "demo",
        "bump",
    }
    for node in sessions:
        assert len((ast.get_docstring(node) or "").splitlines()) == 1, node.name


@pytest.mark.parametrize("torch", ["2.6", "2.9", "2.13", "2.15"])
def test_each_supported_torch_has_its_constraints(repository, torch):
    """Its file pins that version."""
    lines = (
        (repository.root / f"constraints/torch-{torch}.txt")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    assert [line for line in lines if line.startswith(f"torch=={torch}.")]


def test_every_licence_is_the_same(repository, distribution):
    """The copy in each package equals that of the repository."""
    copy = repository.root / "packages" / distribution / "LICENSE"
    assert copy.read_bytes() == (repository.root / "LICENSE").read_bytes()


def test_every_answer_of_the_map_defines_what_it_names(repository):
    """CONTRIBUTING.md answers at least twelve questions, each with a file and a name in it."""
    text = (repository.root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+\?) \| \[brain_\S+\]\((\S+)\) \| `(\S+)` \|$", text, re.MULTILINE)
    assert len(rows) >= 12
    assert len(rows) == text.split("## Where to find what")[1].split("\n## ")[0].count("?")
    wrong = [row for row in rows if not defines(repository.root / row[1], row[2])]
    assert wrong == []


def test_one_run_of_the_whole_suite_collects_the_tests_of_every_folder(repository, pytestconfig):
    """No folder with tests has a name that pytest does not enter."""
    tests = repository.root / "tests"
    files = [file.relative_to(tests) for file in tests.rglob("test_*.py")]
    folders = {part for file in files for part in file.parts[:-1]}
    assert {"dist", "ckpt", "data", "core"} <= folders
    skipped = pytestconfig.getini("norecursedirs")
    assert [name for name in folders if any(fnmatch(name, one) for one in skipped)] == []


def test_the_page_of_platforms_names_existing_tests(repository):
    """Each fallback names a file, or a test in one."""
    text = (repository.root / "docs/platforms.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/\S+\.py)(?:::(test_\w+))?`", text)
    assert len(named) >= 10
    wrong = [row for row in named if row[1] and not defines(repository.root / row[0], row[1])]
    wrong += [row for row in named if not (repository.root / row[0]).exists()]
    assert wrong == []


def test_the_page_of_platforms_lists_the_pairs_of_the_matrix(repository):
    """Each row of Python and PyTorch is a pair that the session runs, and each pair has a row."""
    text = (repository.root / "docs/platforms.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (3\.\d+) \| (\d\.\d+) \|$", text, re.MULTILINE)
    noxfile = (repository.root / "noxfile.py").read_text(encoding="utf-8")
    matrix = ast.literal_eval(re.search(r"^MATRIX = (.*)$", noxfile, re.MULTILINE)[1])
    assert listed == list(matrix)


def test_a_name_that_is_missing_is_found(tmp_path):
    """Functions, classes, methods and constants are looked up, and nothing else."""
    path = tmp_path / "module.py"
    path.write_text("import os\nA: int = 1\nB = 2\nclass C:\n    def d(self): e = 3\n")
    assert all(defines(path, name) for name in ("A", "B", "C", "C.d"))
    assert not any(defines(path, name) for name in ("os", "d", "e", "C.e", "A.d"))
    assert not defines(tmp_path / "no_file.py", "A")


def test_modules_and_functions_stay_readable(repository, package):
    """A module has at most 400 lines, a function 50, without docstrings."""
    assert too_long(repository.sources(package)) == []


def test_programs_stay_readable(repository):
    """The same holds for what is not packaged: chaos, release, benchmarks and examples."""
    paths = [p for name in PROGRAMS for p in sorted((repository.root / name).rglob("*.py"))]
    assert paths
    assert too_long({path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}) == []


def test_a_long_function_and_a_long_module_are_found():
    """Docstrings do not count, signatures do."""
    docstring = '"""A docstring.' + "\n" * 60 + '"""\n'
    lines = "    x = 0\n"
    within = ast.parse(f"def f():\n    {docstring}{lines * 49}")
    beyond = ast.parse(f"def f():\n    {docstring}{lines * 50}")
    module = ast.parse("x = 0\n" * 401)
    assert too_long({Path("a.py"): within}) == []
    assert too_long({Path("a.py"): beyond}) == ["a.py:1 f has 51 lines"]
    assert too_long({Path("a.py"): module}) == ["a.py has 401 lines"]


def defines(path: Path, name: str) -> bool:
    """Return whether a module defines a name, such as ``function`` or ``Class.method``."""
    if not path.exists():
        return False
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = [node for node in body if part in defined_by(node)]
        if not found:
            return False
        body = found[0].body if isinstance(found[0], ast.ClassDef) else []
    return True


def defined_by(node: ast.stmt) -> set[str]:
    """Return the names that a statement defines."""
    if isinstance(node, (ast.ClassDef, *FUNCTIONS)):
        return {node.name}
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    return {target.id for target in targets if isinstance(target, ast.Name)}


def too_long(sources: dict[Path, ast.Module]) -> list[str]:
    """Return a line for each module and each function that is too long."""
    found = []
    for path, tree in sources.items():
        if (count := code_lines(tree)) > MODULE_LINES:
            found.append(f"{path.name} has {count} lines")
        functions = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
        found += [
            f"{path.name}:{node.lineno} {node.name} has {count} lines"
            for node in functions
            if (count := code_lines(node)) > FUNCTION_LINES
        ]
    return found


def code_lines(tree: ast.Module | ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a module or function, without the docstrings in it."""
    if not tree.body:
        return 0
    count = tree.body[-1].end_lineno - getattr(tree, "lineno", 1) + 1
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
            count -= node.body[0].end_lineno - node.body[0].lineno + 1
    return count
