"""The repository as its own tests see it: where the packages are and what they declare."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]
CODE_PACKAGES = ("brain_dist", "brain_ckpt", "brain_data", "brain_core")
EVERY_PACKAGE = ("brain-all", "brain-ckpt", "brain-core", "brain-data", "brain-dist")


class Repository:
    """The files of the repository, and what its packages declare."""

    root = ROOT
    code_packages = CODE_PACKAGES  # the lowest first

    def project(self, name: str) -> dict[str, Any]:
        """Return the ``[project]`` table of a package."""
        toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
        path = ROOT / "packages" / name.replace("_", "-") / "pyproject.toml"
        return toml.loads(path.read_text(encoding="utf-8"))["project"]

    def requirement_names(self, name: str, *, extras: bool = False) -> set[str]:
        """Return the import names of what a package and its siblings require."""
        project = self.project(name)
        lines = list(project["dependencies"])
        if extras:
            lines += [line for group in project["optional-dependencies"].values() for line in group]
        names = {re.match(r"[\w.-]+", line).group().lower().replace("-", "_") for line in lines}
        for sibling in [each for each in names if each in CODE_PACKAGES and each != name]:
            names |= self.requirement_names(sibling) - {sibling}
        names |= {"yaml", "ruamel"} if "hyperpyyaml" in names else set()  # it requires these two
        return {{"pyyaml": "yaml"}.get(each, each) for each in names}

    def directory(self, name: str) -> Path:
        """Return the directory of a package's sources."""
        return ROOT / "packages" / name.replace("_", "-") / "src" / name

    def sources(self, name: str) -> dict[Path, ast.Module]:
        """Return the parsed modules of a package."""
        files = sorted(self.directory(name).rglob("*.py"))
        return {path: ast.parse(path.read_text(encoding="utf-8")) for path in files}


@pytest.fixture(scope="session")
def repository() -> Repository:
    """Give the repository."""
    return Repository()


@pytest.fixture(scope="session")
def layers() -> ModuleType:
    """Give the module that finds the layers of a package."""
    path = Path(__file__).with_name("_layers.py")
    spec = importlib.util.spec_from_file_location("packaging_tests_layers", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=CODE_PACKAGES)
def package(request: pytest.FixtureRequest) -> str:
    """Give the import name of each package that holds code; skip one that is not installed."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed here")
    return request.param


@pytest.fixture(params=EVERY_PACKAGE)
def distribution(request: pytest.FixtureRequest) -> str:
    """Give the name of each distribution."""
    return request.param


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of the wheels and sdists: those that nox built, or new ones."""
    if "BRAIN_WHEELS" in os.environ:
        return Path(os.environ["BRAIN_WHEELS"])
    pytest.importorskip("hatchling", reason="hatchling builds the wheels")
    target = tmp_path_factory.mktemp("wheels")
    for name in EVERY_PACKAGE:
        command = [sys.executable, "-m", "hatchling", "build", "-d", str(target)]
        subprocess.run(command, cwd=ROOT / "packages" / name, check=True, capture_output=True)
    return target


@pytest.fixture
def wheel(repository: Repository, built: Path, distribution: str) -> zipfile.ZipFile:
    """Give the opened wheel of a distribution."""
    version = repository.project(distribution)["version"]
    path = built / f"{distribution.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path) as opened:
        yield opened
