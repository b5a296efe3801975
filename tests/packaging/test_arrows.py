"""What the packages import: only what is below them, inside a package too, and what is declared."""

from __future__ import annotations

import re
import shutil
import sys

import pytest

BELOW = {
    "brain_dist": set(),
    "brain_ckpt": {"brain_dist"},
    "brain_data": {"brain_dist"},
    "brain_core": {"brain_ckpt", "brain_data", "brain_dist"},
}
FREE = set(sys.stdlib_module_names) | {"__future__"}
# numpy comes with what needs it: a package may look at it where the user has already loaded it.
LOOKED_AT = {"numpy"}
# Modules of a sibling that may be imported besides its public names.
SHARED_MODULES = {"brain_dist.lazy"}


@pytest.fixture
def imported(layers):
    """Return a function that returns the full names of what a module imports from elsewhere."""

    def names(tree, **where):
        found = set()
        for statement in layers.import_statements(tree, **where):
            if hasattr(statement, "level"):
                found |= set() if statement.level else {statement.module}
            else:
                found |= {alias.name for alias in statement.names}
        return found

    return names


@pytest.fixture
def imported_packages(imported):
    """Return a function that returns the top-level names of what a module imports."""
    return lambda tree, **where: {name.partition(".")[0] for name in imported(tree, **where)}


def test_each_folder_imports_only_folders_below_it(repository, layers):
    """In every package; ``pytest -s`` shows their layers."""
    packages = [layers.Package(repository.directory(name)) for name in repository.code_packages]
    tables = [package.table() for package in packages]  # raises where an import points up
    print("", *tables, sep="\n\n")  # noqa: T201 - for -s
    assert all(" layers, " in table for table in tables)


def test_each_module_imports_only_modules_below_it(repository, layers, package):
    """No two modules import each other, inside a folder either."""
    found = layers.Package(repository.directory(package))
    assert set(found.layers(by_folder=False)) == set(found.files)


def test_a_layer_is_one_more_than_the_highest_that_is_imported(layers, tmp_path):
    """Folders and modules beside them alike; what imports nothing is in layer 0."""
    package = tmp_path / "some"
    (package / "low").mkdir(parents=True)
    sources = {
        "__init__.py": "",
        "low/__init__.py": "",
        "low/one.py": "import os",
        "low/two.py": "from . import one",
        "middle.py": "from some.low.two import x",
        "high.py": "from some import low\ndef f():\n    from some.middle import y",
    }
    for name, text in sources.items():
        (package / name).write_text(text)
    found = layers.Package(package)
    assert found.layers(by_folder=True) == {"__init__": 0, "low": 0, "middle": 1, "high": 2}
    modules = found.layers(by_folder=False)
    assert [modules[f"some.{name}"] for name in ("low.one", "low.two", "middle")] == [0, 1, 2]


@pytest.fixture
def plant(repository, layers, tmp_path):
    """Return a function that appends an import to a copy of brain_core, against an existing one.

    It returns the existing import, and the package with the new one.
    """

    def planted(statement, *, in_one_folder=False):
        source = repository.directory("brain_core")
        copy = shutil.copytree(source, tmp_path / "brain_core")
        down = next(
            found
            for found in layers.Package(source).imports
            if found.importer != "brain_core"
            and (folder(found.importer) == folder(found.imported)) == in_one_folder
        )
        parent, _, name = down.importer.rpartition(".")
        relative = "." * down.imported.count(".") + parent.partition(".")[2]
        with (copy / down.imported_file).open("a", encoding="utf-8") as file:
            file.write(statement.format(parent=parent, name=name, relative=relative))
        return down, layers.Package(copy)

    folder = layers.folder_of
    return planted


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("\nfrom {parent} import {name}\n", id="from a folder"),
        pytest.param("\nimport {parent}.{name}\n", id="absolute"),
        pytest.param("\nfrom {relative} import {name}\n", id="relative"),
        pytest.param("\ndef f():\n    from {parent}.{name} import x\n", id="in a function"),
        pytest.param(
            "\nif TYPE_CHECKING:\n    x = 0\nelse:\n    import {parent}.{name}\n", id="else"
        ),
    ],
)
def test_an_import_that_points_up_is_refused(plant, layers, statement):
    """The error names both folders, and both files of each arrow."""
    down, changed = plant(statement)
    with pytest.raises(layers.UpwardImportError) as error:
        changed.layers(by_folder=True)
    lower, upper = layers.folder_of(down.imported), layers.folder_of(down.importer)
    up = rf"  {lower} -> {upper}: {down.imported_file}:\d+ imports {down.importer_file}"
    assert re.search(up, str(error.value)), error.value
    assert f"  {upper} -> {lower}: {down}" in str(error.value)


def test_two_modules_of_a_folder_that_import_each_other_are_refused(plant, layers):
    """Their folder has a layer, and they have none."""
    down, changed = plant("\nimport {parent}.{name}\n", in_one_folder=True)
    assert layers.folder_of(down.importer) in changed.layers(by_folder=True)
    with pytest.raises(layers.UpwardImportError, match=f"imports {down.importer_file}"):
        changed.layers(by_folder=False)


def test_an_import_from_the_package_itself_points_up(plant, layers):
    """Its public names are loaded from modules that are above the importing one."""
    _, changed = plant("\nfrom brain_core import Brain\n")
    with pytest.raises(layers.UpwardImportError, match=r"imports __init__\.py"):
        changed.layers(by_folder=True)


def test_an_import_for_type_checkers_may_point_up(plant, layers):
    """It does not run."""
    down, changed = plant("\nif TYPE_CHECKING:\n    import {parent}.{name}\n")
    layer = changed.layers(by_folder=True)
    assert layer[layers.folder_of(down.imported)] < layer[layers.folder_of(down.importer)]


def test_packages_import_only_packages_below_them(repository, imported_packages, package):
    """No package imports a sibling beside or above it, not even inside a function."""
    wrong = {
        path.name: names
        for path, tree in repository.sources(package).items()
        if (names := imported_packages(tree) & set(BELOW) - BELOW[package] - {package})
    }
    assert wrong == {}


def test_packages_import_only_public_names_of_each_other(repository, imported, package):
    """A module of a sibling is not an address to rely on."""
    private = tuple(f"{sibling}." for sibling in BELOW[package])
    wrong = {
        path.name: names
        for path, tree in repository.sources(package).items()
        if (names := {n for n in imported(tree) - SHARED_MODULES if n.startswith(private)})
    }
    assert wrong == {}


def test_modules_import_only_what_is_required(repository, imported_packages, package):
    """What a module imports at its top is required by its package, or of Python's own library."""
    allowed = FREE | repository.requirement_names(package) | {package}
    wrong = {
        path.name: names
        for path, tree in repository.sources(package).items()
        if (names := imported_packages(tree, in_functions=False) - allowed)
    }
    assert wrong == {}


def test_functions_import_only_what_is_declared(repository, imported_packages, package):
    """What a function imports is required or an extra of its package."""
    extras = "optional-dependencies" in repository.project(package)
    allowed = FREE | LOOKED_AT | repository.requirement_names(package, extras=extras) | {package}
    wrong = {
        path.name: names
        for path, tree in repository.sources(package).items()
        if (names := imported_packages(tree) - allowed)
    }
    assert wrong == {}


def test_each_package_requires_its_siblings_below(repository, package):
    """The requirements agree with the layers."""
    lines = repository.project(package)["dependencies"]
    siblings = {
        line.split("==")[0].replace("-", "_") for line in lines if line.startswith("brain-")
    }
    assert siblings == BELOW[package]
