"""Moves the imports of a Python text."""

from __future__ import annotations

import ast
import builtins
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from brain_core.move.edits import NOT_HERE, Edit, Left
from brain_core.move.from_import import FromImport
from brain_core.move.python_scopes import old_path
from brain_core.move.table import PACKAGES, find

if TYPE_CHECKING:
    from brain_core.move.python_scopes import Scope, Scopes
    from brain_core.move.source import Source

__all__ = ["ModuleUses", "move_imports"]


@dataclass
class ModuleUses:
    """What the uses of a name for a module of SpeechBrain's need.

    Attributes
    ----------
    packages : set of str
        The packages that replace it.
    stays : bool
        Whether a use of the module itself remains.
    """

    packages: set[str] = field(default_factory=set)
    stays: bool = False


def move_imports(
    source: Source, scopes: Scopes, uses: dict[tuple[Scope, str], ModuleUses]
) -> tuple[list[Edit], list[Left]]:
    """Return the edits of all imports, and the imported names that stay.

    Parameters
    ----------
    source : Source
        The text.
    scopes : Scopes
        Its imports.
    uses : dict of (Scope, str) to ModuleUses
        What the uses of each name for a module need.
    """
    mover = _ImportMover(source, scopes, uses)
    for node in scopes.imports:
        mover.move(node)
    mover.add_star_names()
    return mover.edits, mover.left


class _ImportMover:
    def __init__(
        self, source: Source, scopes: Scopes, uses: dict[tuple[Scope, str], ModuleUses]
    ) -> None:
        self.edits: list[Edit] = []
        self.left: list[Left] = []
        self._source = source
        self._scopes = scopes
        self._uses = uses
        self._imported: set[tuple[int, str]] = set()  # blocks, and packages imported there
        self._stars: list[ast.ImportFrom] = []

    def move(self, node: ast.Import | ast.ImportFrom) -> None:
        """Collect the edits of one import."""
        if isinstance(node, ast.Import):
            self._move_import(node)
        elif not node.level and old_path(node.module) is not None:
            if node.names[0].name == "*":
                self._stars.append(node)
            else:
                self._move_from(node)

    def _packages(self, node: ast.stmt, alias: ast.alias) -> tuple[list[str], bool] | None:
        """Return what to import for a module of SpeechBrain, and whether it stays imported.

        None means that this part of the import stays as it is.
        """
        module = self._scopes.modules.get(alias)
        if module is None:
            return None
        uses = self._uses[module.scope, module.name]
        if not uses.packages:
            return None
        block = self._scopes.blocks[node]
        needed = [name for name in sorted(uses.packages) if (block, name) not in self._imported]
        self._imported |= {(block, name) for name in needed}
        return needed, uses.stays

    def _move_import(self, node: ast.Import) -> None:
        parts: list[str] = []
        changed = False
        for alias in node.names:
            found = self._packages(node, alias)
            changed = changed or found is not None
            if alias.name in PACKAGES and alias.asname is None:
                self._imported.add((self._scopes.blocks[node], alias.name))
            elif found is None and old_path(alias.name) is not None:
                self._leave(node, alias, alias.name)
            parts += found[0] if found else []
            if found is None or found[1]:
                parts.append(self._text(alias))
        if changed and len(node.names) == 1:
            self._put(node, [f"import {part}" for part in parts])
        elif changed:
            self._put(node, [f"import {', '.join(parts)}"] if parts else [])

    def _move_from(self, node: ast.ImportFrom) -> None:
        base = old_path(node.module)
        assert base is not None
        packages: list[str] = []
        by_package: dict[str, list[int]] = {}
        stay: list[int] = []
        for position, alias in enumerate(node.names):
            moved = find((*base, alias.name))
            found = self._packages(node, alias)
            if moved is not None:
                by_package.setdefault(moved.package, []).append(position)
            elif found is not None:
                packages += found[0]
                stay += [position] if found[1] else []
            else:
                self._leave(node, alias, f"{node.module}.{alias.name}")
                stay.append(position)
        if len(stay) < len(node.names) or packages:
            start = self._source.span(node)[0]
            spans = [self._source.span(alias) for alias in node.names]
            text = FromImport(self._text(node), [(a - start, b - start) for a, b in spans])
            statements = [f"import {package}" for package in packages]
            statements += [text.only(by_package[name], name) for name in sorted(by_package)]
            self._put(node, statements + ([text.only(stay)] if stay else []))

    def add_star_names(self) -> None:
        """Import what stars give by name, after the last of them; keep those that are needed."""
        if not self._stars:
            return
        unbound = {
            use.root.id
            for use in self._scopes.uses
            if use.scope.owner(use.root.id) is None and not hasattr(builtins, use.root.id)
        }
        bases = [old_path(node.module) or () for node in self._stars]
        moved = {
            name: where
            for base in bases
            for name in sorted(unbound)
            if (where := find((*base, name))) is not None
        }
        by_package: dict[str, list[str]] = {}
        for name in sorted(moved):
            by_package.setdefault(moved[name].package, []).append(name)
        new = [f"from {p} import {', '.join(by_package[p])}" for p in sorted(by_package)]
        others = unbound - set(moved)
        for node in self._stars:
            if others:
                why = f"it may give {', '.join(sorted(others))}"
                self.left.append(Left(node.lineno, f"{node.module}.*", why))
            kept = [self._text(node)] if others or not moved else []
            last = node is self._stars[-1]
            if moved:
                self._put(node, kept + (new if last else []))

    def _leave(self, node: ast.stmt, alias: ast.alias, name: str) -> None:
        module = self._scopes.modules.get(alias)
        if module is None:
            self.left.append(Left(node.lineno, name, NOT_HERE))
        elif not self._uses[module.scope, module.name].stays:
            self.left.append(Left(node.lineno, name, "imported, and not used in this file"))

    def _text(self, node: ast.stmt | ast.alias) -> str:
        return self._source.text[slice(*self._source.span(node))]

    def _put(self, node: ast.stmt, statements: list[str]) -> None:
        """Put statements in the place of one: on lines of their own if it stands alone."""
        start, end = self._source.span(node)
        before, after = self._source.surroundings(node)
        alone = not before.strip() and (not after.strip() or after.lstrip().startswith("#"))
        newline = "\r\n" if after.endswith("\r\n") else "\n"
        if not alone:
            self.edits.append(Edit(start, end, "; ".join(statements) or "pass"))
        elif statements:
            self.edits.append(Edit(start, end, f"{newline}{before}".join(statements)))
        elif after.strip():  # a comment stays
            self.edits.append(Edit(start, end + len(after) - len(after.lstrip()), ""))
        else:
            self.edits.append(Edit(start - len(before), end + len(after), ""))
