"""One version, in lockstep."""

from __future__ import annotations

import importlib
import importlib.metadata
import itertools
import re
import shutil
import subprocess
import sys

import pytest


def test_every_package_has_the_version_of_brain_all(house, distribution):
    """A release is one version of all five."""
    assert house.project(distribution)["version"] == house.project("brain-all")["version"]


def test_the_module_says_the_version_of_its_distribution(house, package):
    """``__version__`` is what pip lists."""
    module = importlib.import_module(package)
    declared = house.project(package)["version"]
    assert module.__version__ == declared == importlib.metadata.version(package)


def test_siblings_are_pinned_to_the_same_version(house, distribution):
    """A package never meets a sibling of another release."""
    project = house.project(distribution)
    extras = project.get("optional-dependencies", {}).values()
    lines = [*project["dependencies"], *itertools.chain.from_iterable(extras)]
    siblings = [line for line in lines if line.startswith("brain-")]
    own_extras = [line for line in siblings if line.startswith(f"{distribution}[")]
    pinned = set(siblings) - set(own_extras)
    assert all(line.endswith(f"=={project['version']}") for line in pinned), pinned


def test_brain_all_pins_the_four(house):
    """The meta-package stands for exactly the four."""
    names = {line.split("==")[0] for line in house.project("brain-all")["dependencies"]}
    assert names == {"brain-ckpt", "brain-core", "brain-data", "brain-dist"}


def test_brain_all_offers_every_extra_of_the_four(house):
    """What a package offers can be had through brain-all."""
    offered = set(house.project("brain-all")["optional-dependencies"])
    parts = ("brain-ckpt", "brain-core", "brain-data", "brain-dist")
    extras = [set(house.project(part).get("optional-dependencies", {})) for part in parts]
    assert offered == set.union(*extras)


def test_bump_sets_the_version_everywhere(house, tmp_path):
    """No place that names the version is forgotten by ``nox -s bump``."""
    pytest.importorskip("nox")
    for name in ("noxfile.py", "pyproject.toml", "CHANGELOG.md"):
        shutil.copy(house.root / name, tmp_path)
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(house.root / "packages", tmp_path / "packages", ignore=skipped)
    old = house.project("brain-all")["version"]
    command = [sys.executable, "-m", "nox", "-f", str(tmp_path / "noxfile.py"), "-s", "bump"]
    subprocess.run([*command, "--", "97.98.99"], check=True, capture_output=True, timeout=60)
    files = [
        *tmp_path.glob("packages/*/pyproject.toml"),
        *tmp_path.glob("packages/*/src/*/__init__.py"),
    ]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert "97.98.99" in text, path
        assert not re.search(rf'(==|version.* = "){re.escape(old)}"', text), path
    assert "## 97.98.99\n" in (tmp_path / "CHANGELOG.md").read_text(encoding="utf-8")
