"""Finds what the names of a Python module are bound to: SpeechBrain's modules, or anything else."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from brain_core.move.table import OLD, find, holds_moved_names

__all__ = ["Path", "Scope", "Scopes", "Use", "old_path"]

Path: TypeAlias = "tuple[str, ...]"
_Function: TypeAlias = "ast.FunctionDef | ast.AsyncFunctionDef"
_Comprehension: TypeAlias = "ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp"

_STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def old_path(module: str | None) -> Path | None:
    """Return a dotted name without ``speechbrain``, or None if it is not SpeechBrain's."""
    first, *rest = (module or "").split(".")
    return tuple(rest) if first == OLD else None


def _module_path(node: ast.Import | ast.ImportFrom, alias: ast.alias) -> Path | None:
    """Return the module that a part of an import binds, or None if it has no moved names."""
    if isinstance(node, ast.Import):
        path = old_path(alias.name)
        path = () if path is not None and alias.asname is None else path
    else:
        base = None if node.level else old_path(node.module)
        path = None if base is None else (*base, alias.name)
    return path if path is not None and holds_moved_names(path) and not find(path) else None


@dataclass(eq=False)
class Scope:
    """A module, class, function or comprehension, and the names that it binds.

    Attributes
    ----------
    parent : Scope or None
        The enclosing one.
    is_class : bool
        Whether functions inside do not see its names.
    bound : dict of str to set
        For each name the paths of SpeechBrain's modules that it is bound to; None stands for
        anything else.
    declared : dict of str to Scope
        Names that ``global`` or ``nonlocal`` binds elsewhere.
    """

    parent: Scope | None = None
    is_class: bool = False
    bound: dict[str, set[Path | None]] = field(default_factory=dict)
    declared: dict[str, Scope] = field(default_factory=dict)

    def bind(self, name: str, path: Path | None = None) -> Scope:
        """Note that a name is bound here; return the scope that has it."""
        scope = self.declared.get(name, self)
        scope.bound.setdefault(name, set()).add(path)
        return scope

    def owner(self, name: str) -> Scope | None:
        """Return the scope whose binding a use of the name sees, or None: a built-in name."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.declared:
                return scope.declared[name]
            if name in scope.bound and (scope is self or not scope.is_class):
                return scope
            scope = scope.parent
        return None


class Use(NamedTuple):
    """A name where it is read, with the attributes after it.

    Attributes
    ----------
    scope : Scope
        Where it stands.
    root : ast.Name
        The name.
    chain : tuple of ast.Attribute
        The attributes, the innermost first.
    fstring : ast.JoinedStr or None
        The f-string that it stands in.
    """

    scope: Scope
    root: ast.Name
    chain: tuple[ast.Attribute, ...]
    fstring: ast.JoinedStr | None


class ModuleImport(NamedTuple):
    """A part of an import that binds a name to a module of SpeechBrain with moved names.

    Attributes
    ----------
    scope, name : Scope, str
        What is bound, and where.
    """

    scope: Scope
    name: str


class Scopes(ast.NodeVisitor):
    """What a module binds and reads.

    Parameters
    ----------
    tree : ast.Module
        The module.

    Attributes
    ----------
    uses : list of Use
        Every name that is read.
    imports : list of ast.Import or ast.ImportFrom
        Every import.
    modules : dict of ast.alias to ModuleImport
        The parts of them that bind a module of SpeechBrain with moved names.
    blocks : dict of import to int
        The same number for imports in the same block of statements.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.module = self.scope = Scope()
        self.uses: list[Use] = []
        self.imports: list[ast.Import | ast.ImportFrom] = []
        self.modules: dict[ast.alias, ModuleImport] = {}
        self.blocks: dict[ast.stmt, int] = {}
        self._fstring: ast.JoinedStr | None = None
        self._block = 0
        self.visit(tree)

    def generic_visit(self, node: ast.AST) -> None:
        """Visit the parts of a node; number its blocks of statements."""
        for _, value in ast.iter_fields(node):
            if isinstance(value, ast.AST):
                self.visit(value)
            elif isinstance(value, list):
                self._visit_all([each for each in value if isinstance(each, ast.AST)])

    def _visit_all(self, nodes: list[ast.AST] | list[ast.stmt] | list[ast.expr]) -> None:
        outer = self._block
        if nodes and isinstance(nodes[0], ast.stmt):
            self._block = id(nodes[0])
        for node in nodes:
            self.visit(node)
        self._block = outer

    def visit_Import(self, node: ast.Import) -> None:
        """Bind the first part of each name, or its alias."""
        self._note_import(node)
        for alias in node.names:
            name = alias.asname or alias.name.partition(".")[0]
            self._bind_import(alias, name, _module_path(node, alias))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Bind each name; a star binds names that are not known."""
        self._note_import(node)
        for alias in node.names:
            if alias.name != "*":
                self._bind_import(alias, alias.asname or alias.name, _module_path(node, alias))

    def _note_import(self, node: ast.Import | ast.ImportFrom) -> None:
        self.imports.append(node)
        self.blocks[node] = self._block

    def _bind_import(self, alias: ast.alias, name: str, path: Path | None) -> None:
        scope = self.scope.bind(name, path)
        if path is not None:
            self.modules[alias] = ModuleImport(scope, name)

    def visit_Name(self, node: ast.Name) -> None:
        """Note a use, or bind the name."""
        if isinstance(node.ctx, ast.Load):
            self.uses.append(Use(self.scope, node, (), self._fstring))
        else:
            self.scope.bind(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Note a use with all its attributes."""
        chain: list[ast.Attribute] = []
        value: ast.expr = node
        while isinstance(value, ast.Attribute):
            chain.append(value)
            value = value.value
        if isinstance(value, ast.Name):
            self.uses.append(Use(self.scope, value, tuple(reversed(chain)), self._fstring))
        else:
            self.visit(value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Remember the f-string around a use: before Python 3.12 positions in it are wrong."""
        outer = self._fstring
        self._fstring = outer or node
        self.generic_visit(node)
        self._fstring = outer

    def visit_FunctionDef(self, node: _Function) -> None:
        """Bind the name; decorators, defaults and annotations belong to the enclosing scope."""
        self.scope.bind(node.name)
        arguments = _arguments(node.args)
        annotations = [each.annotation for each in arguments if each.annotation]
        self._visit_all([*node.decorator_list, *_defaults(node.args), *annotations])
        if node.returns:
            self.visit(node.returns)
        self._inside(arguments, [*getattr(node, "type_params", []), *node.body])

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 - names of ast's nodes

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """Read its body in a scope with its arguments."""
        self._visit_all(_defaults(node.args))
        self._inside(_arguments(node.args), [node.body])

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Bind the name; read the body in a scope that functions do not see."""
        self.scope.bind(node.name)
        self._visit_all([*node.decorator_list, *node.bases])
        for keyword in node.keywords:
            self.visit(keyword)
        self._inside([], [*getattr(node, "type_params", []), *node.body], is_class=True)

    def _inside(
        self, arguments: list[ast.arg], body: list[ast.AST], *, is_class: bool = False
    ) -> None:
        self.scope = Scope(self.scope, is_class)
        self._declare(body)
        for argument in arguments:
            self.scope.bind(argument.arg)
        self._visit_all(body)
        assert self.scope.parent is not None
        self.scope = self.scope.parent

    def _declare(self, body: list[ast.AST]) -> None:
        """Read ``global`` and ``nonlocal`` first: what they bind is not bound here."""
        todo = list(body)
        while todo:
            node = todo.pop()
            if isinstance(node, (ast.Global, ast.Nonlocal)):
                for name in node.names:
                    outer = self.scope.parent.owner(name) if self.scope.parent else None
                    found = outer if isinstance(node, ast.Nonlocal) else self.module
                    self.scope.declared[name] = found or self.module
            elif isinstance(node, _STATEMENTS) and not isinstance(node, _SCOPES):
                todo += ast.iter_child_nodes(node)

    def _comprehension(self, node: _Comprehension) -> None:
        self.visit(node.generators[0].iter)
        self.scope = Scope(self.scope)
        for position, part in enumerate(node.generators):
            self.visit(part.target)
            if position:
                self.visit(part.iter)
            self._visit_all(part.ifs)
        for name in ("key", "value", "elt"):
            if hasattr(node, name):
                self.visit(getattr(node, name))
        assert self.scope.parent is not None
        self.scope = self.scope.parent

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension  # noqa: N815

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        """Bind the name in this scope and in those around: a comprehension binds it outside."""
        self.visit(node.value)
        scope: Scope | None = self.scope
        while scope is not None:
            scope.bind(node.target.id)
            scope = scope.parent

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        """Bind the name of the exception."""
        self._bind_and_visit(node, node.name)

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        """Bind what a pattern captures."""
        self._bind_and_visit(node, node.name)

    def visit_MatchStar(self, node: ast.MatchStar) -> None:
        """Bind what a pattern captures."""
        self._bind_and_visit(node, node.name)

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        """Bind what a pattern captures."""
        self._bind_and_visit(node, node.rest)

    def _bind_and_visit(self, node: ast.AST, name: str | None) -> None:
        if name is not None:
            self.scope.bind(name)
        self.generic_visit(node)


def _arguments(arguments: ast.arguments) -> list[ast.arg]:
    """Return all arguments of a function."""
    several = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [*several, *filter(None, (arguments.vararg, arguments.kwarg))]


def _defaults(arguments: ast.arguments) -> list[ast.expr]:
    """Return all default values of a function."""
    return [*arguments.defaults, *filter(None, arguments.kw_defaults)]
