"""All packages have one version."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import itertools
import re
import shutil
import subprocess
import sys

import pytest


def test_every_package_has_the_version_of_brain_all(repository, distribution):
    """A release is one version of all five packages."""
    assert repository.project(distribution)["version"] == repository.project("brain-all")["version"]


def test_a_module_has_the_version_of_its_distribution(repository, package):
    """``__version__`` is the version that pip lists."""
    module = importlib.import_module(package)
    declared = repository.project(package)["version"]
    assert module.__version__ == declared == importlib.metadata.version(package)


def test_siblings_are_pinned_to_the_same_version(repository, distribution):
    """A package is never installed with a sibling of another release."""
    project = repository.project(distribution)
    extras = project.get("optional-dependencies", {}).values()
    lines = [*project["dependencies"], *itertools.chain.from_iterable(extras)]
    siblings = [line for line in lines if line.startswith("brain-")]
    own_extras = [line for line in siblings if line.startswith(f"{distribution}[")]
    pinned = set(siblings) - set(own_extras)
    assert all(line.endswith(f"=={project['version']}") for line in pinned), pinned


@pytest.mark.parametrize("name", ["brain_ckpt", "brain_data", "brain_core"])
def test_siblings_of_another_version_are_an_error_at_import(name):
    """It says which versions do not fit, and what to install."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed here")
    code = f"import brain_dist; brain_dist.__version__ = '0.0.1'; import {name}"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    version = importlib.metadata.version(name)
    public = name.replace("_", "-")
    assert f"{public} {version} requires brain-dist {version}, but brain-dist 0.0.1" in done.stderr
    assert f"pip install {public}=={version}" in done.stderr


def test_brain_all_pins_the_four(repository):
    """The meta-package requires exactly the four."""
    names = {line.split("==")[0] for line in repository.project("brain-all")["dependencies"]}
    assert names == {"brain-ckpt", "brain-core", "brain-data", "brain-dist"}


def test_brain_all_offers_every_extra_of_the_four(repository):
    """Each extra of a package is an extra of brain-all."""
    offered = set(repository.project("brain-all")["optional-dependencies"])
    parts = ("brain-ckpt", "brain-core", "brain-data", "brain-dist")
    extras = [set(repository.project(part).get("optional-dependencies", {})) for part in parts]
    assert offered == set.union(*extras)


def test_bump_sets_the_version_everywhere(repository, tmp_path):
    """``nox -s bump`` changes every place that names the version."""
    pytest.importorskip("nox")
    for name in ("noxfile.py", "pyproject.toml", "CHANGELOG.md"):
        shutil.copy(repository.root / name, tmp_path)
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(repository.root / "packages", tmp_path / "packages", ignore=skipped)
    old = repository.project("brain-all")["version"]
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
