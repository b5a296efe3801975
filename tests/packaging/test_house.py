"""The house keeps its own rules."""

from __future__ import annotations

import ast

import pytest

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def test_the_noxfile_is_short_and_each_session_says_what_it_does(house):
    """One entry point that can be read in one sitting."""
    text = (house.root / "noxfile.py").read_text(encoding="utf-8")
    assert text.count("\n") < 250
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
        "lint",
        "types",
        "wheels",
        "demo",
        "bump",
    }
    for node in sessions:
        assert len((ast.get_docstring(node) or "").splitlines()) == 1, node.name


@pytest.mark.parametrize("torch", ["2.6", "2.9", "2.13", "2.15"])
def test_each_supported_torch_has_its_constraints(house, torch):
    """The matrix installs what it says."""
    lines = (house.root / f"constraints/torch-{torch}.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith(f"torch=={torch}.")]


def test_every_licence_is_the_same(house, distribution):
    """The copies beside the packages do not drift."""
    copy = house.root / "packages" / distribution / "LICENSE"
    assert copy.read_bytes() == (house.root / "LICENSE").read_bytes()


def test_modules_and_functions_stay_readable(house, package):
    """A module has at most 450 lines besides docstrings, a function 60."""
    for path, tree in house.sources(package).items():
        code = path.read_text(encoding="utf-8").count("\n")
        for node in ast.walk(tree):
            if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
                code -= node.body[0].end_lineno - node.body[0].lineno + 1
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = node.end_lineno - body[0].lineno if body else 0
                assert lines <= 60, f"{path.name}:{node.lineno} {node.name} has {lines} lines"
        assert code <= 450, f"{path.name} has {code} lines besides docstrings"
