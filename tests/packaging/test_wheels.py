"""What is packed into the wheels and sdists."""

from __future__ import annotations

import tarfile


def test_a_wheel_holds_the_licence(repository, wheel):
    """The wheel alone states its terms."""
    (name,) = [n for n in wheel.namelist() if n.endswith("LICENSE")]
    assert wheel.read(name).decode() == (repository.root / "LICENSE").read_text(encoding="utf-8")


def test_a_wheel_of_code_is_typed(wheel, distribution):
    """Type checkers read the annotations of an installed package."""
    typed = [name for name in wheel.namelist() if name.endswith("py.typed")]
    expected = [] if distribution == "brain-all" else [f"{distribution.replace('-', '_')}/py.typed"]
    assert typed == expected


def test_a_wheel_holds_its_own_package_and_nothing_else(wheel, distribution):
    """No test, example or sibling is packed."""
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    code = {top for top in tops if not top.endswith(".dist-info")}
    assert code == (set() if distribution == "brain-all" else {distribution.replace("-", "_")})


def test_a_wheel_holds_its_readme(repository, wheel, distribution):
    """The page of a package on an index is its README."""
    (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
    readme = repository.root / "packages" / distribution / "README.md"
    assert readme.read_text(encoding="utf-8").strip() in wheel.read(name).decode()


def test_an_sdist_holds_source_licence_and_readme(repository, built, distribution):
    """The sdist alone is enough to build the package."""
    name = distribution.replace("-", "_")
    version = repository.project(distribution)["version"]
    with tarfile.open(built / f"{name}-{version}.tar.gz") as opened:
        files = {member.split("/", 1)[1] for member in opened.getnames()}
    needed = {"LICENSE", "README.md", "pyproject.toml", "PKG-INFO"}
    if distribution != "brain-all":
        needed |= {f"src/{name}/__init__.py", f"src/{name}/py.typed"}
    assert needed <= files
    assert not [file for file in files if file.startswith("tests")]
