"""Moves a Python text: the names that it reads from SpeechBrain's modules, then its imports."""

from __future__ import annotations

import ast
import sys
from typing import TYPE_CHECKING

from brain_core.move.edits import NOT_HERE, Edit, Left, MoveError, Result, apply_edits
from brain_core.move.python_imports import ModuleUses, move_imports
from brain_core.move.python_scopes import Scopes, Use
from brain_core.move.source import Source
from brain_core.move.table import OLD, Moved, find

if TYPE_CHECKING:
    from brain_core.move.python_scopes import Path

__all__ = ["move_python"]

# Before this version the positions of names in an f-string are wrong.
_FSTRINGS_HAVE_POSITIONS = sys.version_info >= (3, 12)


def move_python(text: str) -> Result:
    r"""Return a Python text with its imports and names moved.

    Parameters
    ----------
    text : str
        A module, with any line ends.

    Returns
    -------
    Result
        The new text, and what stays on SpeechBrain.

    Raises
    ------
    MoveError
        If the text is not Python, or gives the name of a needed package to something else.

    Examples
    --------
    >>> print(move_python("import speechbrain as sb\nstage = sb.Stage.TRAIN").text)
    import brain_core
    stage = brain_core.Stage.TRAIN
    """
    source = Source(text)
    scopes = Scopes(source.tree)
    uses = _Uses(source, scopes)
    edits, left = move_imports(source, scopes, uses.of)
    _refuse_taken_names(source.tree, {p for found in uses.of.values() for p in found.packages})
    moved = apply_edits(text, [*uses.edits, *edits])
    if moved != text:
        Source(moved)  # raises if it does not parse, so that the file stays as it is
    return Result(moved, sorted({*uses.left, *left}))


class _Uses:
    """What becomes of each use of a name that an import binds to one of SpeechBrain's modules.

    Attributes
    ----------
    of : dict of (Scope, str) to ModuleUses
        What the uses of each such name need.
    edits : list of Edit
        Where a use is replaced.
    left : list of Left
        The uses that stay.
    """

    def __init__(self, source: Source, scopes: Scopes) -> None:
        self._source = source
        self.of = {(each.scope, each.name): ModuleUses() for each in scopes.modules.values()}
        self.edits: list[Edit] = []
        self.left: list[Left] = []
        in_fstrings: dict[tuple[ast.JoinedStr, str], list[tuple[Use, Path, Moved]]] = {}
        for use in scopes.uses:
            scope = use.scope.owner(use.root.id)
            if scope is None or (scope, use.root.id) not in self.of:
                continue
            paths = scope.bound[use.root.id]
            path = next(iter(paths)) if len(paths) == 1 else None
            if path is None:
                self._leave(use, None, f"{use.root.id} is bound to something else, too")
                continue
            moved = find((*path, *(each.attr for each in use.chain)))
            if moved is None:
                self._leave(use, path, NOT_HERE)
            elif not isinstance(use.chain[moved.length - len(path) - 1].ctx, ast.Load):
                self._leave(use, path, "assigned in SpeechBrain's module")
            elif use.fstring is None or _FSTRINGS_HAVE_POSITIONS:
                end = use.chain[moved.length - len(path) - 1]
                self._replace(use, path, moved, self._source.span(use.root, end))
            else:
                written = _written(use, moved.length - len(path))
                in_fstrings.setdefault((use.fstring, written), []).append((use, path, moved))
        for (fstring, written), found in in_fstrings.items():
            spans = source.spans_in_fstring(fstring, written)
            if len(spans) != len(found):  # some stand in the literal parts
                spans = [(0, 0)] * len(found)
            for (use, path, moved), span in zip(found, spans, strict=True):
                self._replace(use, path, moved, span)

    def _replace(self, use: Use, path: Path, moved: Moved, span: tuple[int, int]) -> None:
        text = self._source.text[slice(*span)]
        if "".join(text.split()) != _written(use, moved.length - len(path)):
            self._leave(use, path, "this place cannot be replaced safely")
            return
        self.edits.append(Edit(*span, f"{moved.package}.{moved.name}"))
        self._found(use).packages.add(moved.package)

    def _leave(self, use: Use, path: Path | None, why: str) -> None:
        self._found(use).stays = True
        chain = [each.attr for each in use.chain]
        parts = [use.root.id, *chain] if path is None else [OLD, *path, *chain]
        self.left.append(Left(use.root.lineno, ".".join(parts), why))

    def _found(self, use: Use) -> ModuleUses:
        scope = use.scope.owner(use.root.id)
        assert scope is not None
        return self.of[scope, use.root.id]


def _written(use: Use, length: int) -> str:
    """Return a use as it is usually written, with some of its attributes."""
    return ".".join((use.root.id, *(each.attr for each in use.chain[:length])))


def _refuse_taken_names(tree: ast.Module, needed: set[str]) -> None:
    """Raise an error if a module gives the name of a package to something else."""
    for node in ast.walk(tree):
        if isinstance(node, ast.alias):
            name = node.asname if node.asname != node.name else None
        elif isinstance(getattr(node, "ctx", None), ast.Load) or isinstance(node, ast.keyword):
            continue
        else:
            names = (getattr(node, each, None) for each in ("id", "arg", "name", "rest"))
            name = next(filter(None, names), None)
        if name in needed:
            raise MoveError(
                f"line {getattr(node, 'lineno', 1)} gives the name {name} to something else, "
                f"and {name} has to be imported: rename it first"
            )
