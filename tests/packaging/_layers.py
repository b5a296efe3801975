"""The layers of a package: which of its folders and modules import which, read from the sources.

A folder's layer is one more than the highest layer that it imports; a folder that imports nothing
of its package is in layer 0. A module directly in the package counts as a folder of its own.
"""

from __future__ import annotations

import ast
import graphlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Import", "Package", "UpwardImportError", "import_statements"]

TOP = "__init__"  # what stands for the package itself among its folders


class UpwardImportError(AssertionError):
    """Folders or modules import each other in a circle, so one of the imports points up."""


@dataclass(frozen=True)
class Import:
    """An import of one module of a package by another.

    Attributes
    ----------
    importer, imported : str
        Full names of the modules.
    importer_file, imported_file : str
        Their files, relative to the package.
    line : int
        The line of the statement.
    """

    importer: str
    imported: str
    importer_file: str
    imported_file: str
    line: int

    def __str__(self) -> str:
        """Return a line for an error."""
        return f"{self.importer_file}:{self.line} imports {self.imported_file}"


class Package:
    """The modules of a package and their imports of each other.

    Parameters
    ----------
    directory : Path
        The directory with the package's ``__init__.py``; its name is the package's.

    Attributes
    ----------
    name : str
        The name of the package.
    files : dict of str to str
        The file of each module, relative to the directory, by the module's full name.
    imports : list of Import
        Every import of a module by another, those inside functions included.
    """

    def __init__(self, directory: Path) -> None:
        self.name = directory.name
        self._directory = directory
        self.files = {
            _module_name(path.relative_to(directory.parent)): path.relative_to(directory).as_posix()
            for path in sorted(directory.rglob("*.py"))
        }
        self.imports = [found for importer in self.files for found in self._imports_of(importer)]

    def layers(self, *, by_folder: bool) -> dict[str, int]:
        """Return the layer of each folder, or of each module.

        Raises
        ------
        UpwardImportError
            If an import points up. The message names the circle and both files of each arrow.
        """
        graph = self._graph(by_folder=by_folder)
        try:
            order = list(graphlib.TopologicalSorter(graph).static_order())  # imported ones first
        except graphlib.CycleError as error:
            raise UpwardImportError(_describe(error.args[1], graph)) from None
        layer: dict[str, int] = {}
        for name in order:
            layer[name] = 1 + max((layer[imported] for imported in graph[name]), default=-1)
        return layer

    def table(self) -> str:
        """Return the folders by layer, the highest first, with what each imports."""
        layer, graph = self.layers(by_folder=True), self._graph(by_folder=True)
        lines = [f"{self.name}: {max(layer.values()) + 1} layers, {len(self.files)} modules"]
        for name in sorted(layer, key=lambda name: (-layer[name], name)):
            inside = [file for module, file in self.files.items() if folder_of(module) == name]
            length = sum(_count_lines(self._directory / file) for file in inside)
            size = f"{len(inside):2} module{'s' if len(inside) > 1 else ' '} {length:5} lines"
            below = ", ".join(sorted(graph[name])) or "nothing"
            lines.append(f"  {layer[name]:2}  {name:22} {size}  imports {below}")
        return "\n".join(lines)

    def _graph(self, *, by_folder: bool) -> dict[str, dict[str, Import]]:
        """Return for each importer what it imports, and one import that shows it."""

        def node(module: str) -> str:
            return folder_of(module) if by_folder else module

        graph: dict[str, dict[str, Import]] = {node(module): {} for module in self.files}
        for found in self.imports:
            importer, imported = node(found.importer), node(found.imported)
            if importer != imported:
                graph[importer].setdefault(imported, found)
        return graph

    def _imports_of(self, importer: str) -> Iterator[Import]:
        file = self.files[importer]
        tree = ast.parse((self._directory / file).read_text(encoding="utf-8"))
        # The package loads the names that it lists for type checkers when they are first used.
        for statement in import_statements(tree, type_checking=importer == self.name):
            for name in _imported_names(statement, importer, is_package=file.endswith(TOP + ".py")):
                module = name if name in self.files else name.rpartition(".")[0]
                if module in self.files and module != importer:
                    yield Import(importer, module, file, self.files[module], statement.lineno)


def import_statements(
    tree: ast.AST, *, in_functions: bool = True, type_checking: bool = False
) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the import statements of a module.

    Parameters
    ----------
    tree : ast.AST
        The module, or a part of it.
    in_functions : bool
        Whether to include the bodies of functions.
    type_checking : bool
        Whether to include what stands under ``if TYPE_CHECKING``, which does not run.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
            continue
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not in_functions:
            continue
        is_guard = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        runs = ast.Module(node.orelse, []) if is_guard and not type_checking else node
        yield from import_statements(runs, in_functions=in_functions, type_checking=type_checking)


def folder_of(module: str) -> str:
    """Return the folder of a module; a module directly in the package is its own."""
    return (*module.split("."), TOP)[1]


def _module_name(path: Path) -> str:
    *folders, name = path.with_suffix("").parts
    return ".".join(folders if name == TOP else [*folders, name])


def _imported_names(
    statement: ast.Import | ast.ImportFrom, importer: str, *, is_package: bool
) -> list[str]:
    """Return the full names of what a statement imports: modules, or names in modules."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    module = statement.module or ""
    if statement.level:
        parts = importer.split(".")
        ancestors = parts[: len(parts) - statement.level + is_package]
        module = ".".join([*ancestors, module]) if module else ".".join(ancestors)
    return [f"{module}.{alias.name}" for alias in statement.names]


def _count_lines(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n")


def _describe(cycle: list[str], graph: dict[str, dict[str, Import]]) -> str:
    """Describe a circle in which each name is imported by the next one."""
    circle = cycle[::-1]
    arrows = [f"  {a} -> {b}: {graph[a][b]}" for a, b in itertools.pairwise(circle)]
    return (
        f"Imports must point down only, got the circle {' -> '.join(circle)}. Turn one of its "
        "arrows: move what both sides need below them.\n" + "\n".join(arrows)
    )
