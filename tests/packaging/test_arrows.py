"""What a package's sources import: arrows go down only, and everything is declared."""

from __future__ import annotations

import ast
import sys

BELOW = {
    "brain_dist": set(),
    "brain_ckpt": {"brain_dist"},
    "brain_data": {"brain_dist"},
    "brain_core": {"brain_ckpt", "brain_data", "brain_dist"},
}
FREE = set(sys.stdlib_module_names) | {"__future__"}
# numpy comes with what needs it: a package may look at it where the user has already loaded it.
LOOKED_AT = {"numpy"}


def imported(tree: ast.Module, *, everywhere: bool) -> set[str]:
    """Return the top-level names that a module imports, by a statement, when it runs."""
    nodes = list(ast.walk(tree)) if everywhere else tree.body
    for node in [
        n for n in nodes if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)
    ]:
        nodes = [n for n in nodes if n not in set(ast.walk(node))]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_arrows_go_down_only(house, package):
    """No package imports a sibling beside or above it, not even inside a function."""
    wrong = {
        path.name: names
        for path, tree in house.sources(package).items()
        if (names := imported(tree, everywhere=True) & set(BELOW) - BELOW[package] - {package})
    }
    assert wrong == {}


def test_modules_import_only_what_is_required(house, package):
    """What a module imports at its top is required by its package, or of Python's own library."""
    allowed = FREE | house.requirement_names(package) | {package}
    wrong = {
        path.name: names
        for path, tree in house.sources(package).items()
        if (names := imported(tree, everywhere=False) - allowed)
    }
    assert wrong == {}


def test_functions_import_only_what_is_declared(house, package):
    """What a function imports is required or an extra of its package."""
    extras = "optional-dependencies" in house.project(package)
    allowed = FREE | LOOKED_AT | house.requirement_names(package, extras=extras) | {package}
    wrong = {
        path.name: names
        for path, tree in house.sources(package).items()
        if (names := imported(tree, everywhere=True) - allowed)
    }
    assert wrong == {}


def test_each_package_requires_its_siblings_below(house, package):
    """The requirements say the same as the design."""
    lines = house.project(package)["dependencies"]
    siblings = {
        line.split("==")[0].replace("-", "_") for line in lines if line.startswith("brain-")
    }
    assert siblings == BELOW[package]
