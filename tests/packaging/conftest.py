"""What the tests of the house share: where the packages lie and what they declare."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CODE_PACKAGES = ("brain_ckpt", "brain_core", "brain_data", "brain_dist")
EVERY_PACKAGE = ("brain-all", "brain-ckpt", "brain-core", "brain-data", "brain-dist")


class House:
    """The repository as its own tests see it."""

    root = ROOT

    def project(self, name: str) -> dict[str, Any]:
        """Return the ``[project]`` table of a package."""
        toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
        path = ROOT / "packages" / name.replace("_", "-") / "pyproject.toml"
        return toml.loads(path.read_text(encoding="utf-8"))["project"]

    def requirement_names(self, name: str, *, extras: bool = False) -> set[str]:
        """Return the import names of what a package requires, itself or by a sibling of ours."""
        project = self.project(name)
        lines = list(project["dependencies"])
        if extras:
            lines += [line for group in project["optional-dependencies"].values() for line in group]
        names = {re.match(r"[\w.-]+", line).group().lower().replace("-", "_") for line in lines}
        for sibling in [each for each in names if each in CODE_PACKAGES and each != name]:
            names |= self.requirement_names(sibling) - {sibling}
        names |= {"yaml", "ruamel"} if "hyperpyyaml" in names else set()  # it stands on these two
        return {{"pyyaml": "yaml"}.get(each, each) for each in names}

    def sources(self, name: str) -> dict[Path, ast.Module]:
        """Return the parsed modules of a package."""
        folder = ROOT / "packages" / name.replace("_", "-") / "src" / name
        return {p: ast.parse(p.read_text(encoding="utf-8")) for p in sorted(folder.rglob("*.py"))}


@pytest.fixture(scope="session")
def house() -> House:
    """Give the repository."""
    return House()


@pytest.fixture(params=CODE_PACKAGES)
def package(request: pytest.FixtureRequest) -> str:
    """Give each package that holds code, by its import name; skip what is not installed."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed here")
    return request.param


@pytest.fixture(params=EVERY_PACKAGE)
def distribution(request: pytest.FixtureRequest) -> str:
    """Give each distribution by its name."""
    return request.param


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of the built wheels and sdists: nox's, or one made here."""
    if "BRAIN_WHEELS" in os.environ:
        return Path(os.environ["BRAIN_WHEELS"])
    pytest.importorskip("hatchling", reason="hatchling builds the wheels that are looked into")
    target = tmp_path_factory.mktemp("wheels")
    for name in EVERY_PACKAGE:
        command = [sys.executable, "-m", "hatchling", "build", "-d", str(target)]
        subprocess.run(command, cwd=ROOT / "packages" / name, check=True, capture_output=True)
    return target


@pytest.fixture
def wheel(house: House, built: Path, distribution: str) -> zipfile.ZipFile:
    """Give the wheel of a distribution, opened."""
    version = house.project(distribution)["version"]
    path = built / f"{distribution.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path) as opened:
        yield opened
