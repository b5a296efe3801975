"""Parameters that are documented together keep the type and the default that each one has.

A docstring of a public function can say of several parameters ``a, b``, without types, that they
are as in another function.  griffe gives all of them the annotation of the first.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import griffe

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = re.compile(r"(?m)^\s*(\*{0,2}\w+(?:, \*{0,2}\w+)+)$")


class OwnAnnotations(griffe.Extension):
    """Corrects the parameters of each documented function and class of a package."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Correct what a package documents, once it is loaded."""
        for documented in _functions_and_classes(pkg):
            _correct(documented)


def _functions_and_classes(
    parent: griffe.Module | griffe.Class,
) -> Iterator[griffe.Function | griffe.Class]:
    for member in parent.members.values():
        if isinstance(member, (griffe.Function, griffe.Class)):
            yield member
        if isinstance(member, (griffe.Module, griffe.Class)):
            yield from _functions_and_classes(member)


def _correct(documented: griffe.Function | griffe.Class) -> None:
    docstring = documented.docstring
    lists = NAMES.findall(docstring.value) if docstring is not None else []
    if docstring is None or not lists:
        return
    grouped = {name for each in lists for name in each.split(", ")}
    for section in docstring.parsed:
        if section.kind is griffe.DocstringSectionKind.parameters:
            for parameter in section.value:
                if parameter.name in grouped and parameter.name in documented.parameters:
                    own = documented.parameters[parameter.name]
                    parameter.annotation, parameter.value = own.annotation, own.default
