"""The checks of a release find what they look for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTALLED = ROOT / "release/installed.py"


@pytest.fixture
def release(monkeypatch):
    """Import a module of the program that is not installed."""
    import importlib

    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"release.{name}")


def test_a_file_that_differs_and_one_that_is_missing_are_found(release, tmp_path):
    contents = {"one": {"a": "1", "b": "2"}, "other": {"a": "1", "b": "3", "c": ""}}
    for folder, texts in contents.items():
        (tmp_path / folder).mkdir()
        for name, text in texts.items():
            (tmp_path / folder / name).write_text(text)
    one, other = (list((tmp_path / each).iterdir()) for each in ("one", "other"))
    assert release("build").differing_files(one, other) == ["b", "c"]
    assert release("build").differing_files(one, one) == []


def test_the_wheels_that_were_tested_have_the_metadata_of_pyproject(release, built, repository):
    """Name, version, requirements, extras and all other fields, in wheels and sdists."""
    version = repository.project("brain-all")["version"]
    files = sorted(built.glob(f"brain_*-{version}*"))
    assert release("metadata").check_metadata(ROOT, files) >= 10 * len(files) > 0


def test_a_field_that_differs_from_pyproject_is_named(release, built, repository, tmp_path):
    shutil.copytree(ROOT / "packages", tmp_path / "packages", ignore=shutil.ignore_patterns("src"))
    path = tmp_path / "packages/brain-core/pyproject.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"tqdm>=4.60"', '"tqdm>=4.61"'), encoding="utf-8")
    version = repository.project("brain-all")["version"]
    with pytest.raises(Exception, match=r"brain_core-.*, field Requires-Dist: .*tqdm>=4\.61"):
        release("metadata").check_metadata(tmp_path, sorted(built.glob(f"brain_*-{version}*")))


def test_every_readme_has_a_first_example(release):
    installs = release("installs")
    for readme in set(installs.INSTALLS.values()):
        assert "import" in installs.first_example(ROOT / readme)


def test_a_package_that_is_not_declared_is_found(tmp_path):
    """The environment of a package's own tests holds nothing that it could use by accident."""
    make_distribution(tmp_path, "stray", [])
    make_distribution(tmp_path, "mine", ["torch", "numpy"])
    others = installed_names() - {"stray", "mine"}
    error = check(tmp_path, "mine", *others)
    assert "stray is installed but not declared" in error


def test_a_requirement_that_is_not_installed_is_found(tmp_path):
    make_distribution(tmp_path, "mine", ["torch", "missing>=1"])
    assert "missing>=1 is declared but not installed" in check(tmp_path, "mine")


def test_a_package_that_does_not_declare_torch_is_found(tmp_path):
    """Its environment has torch all the same, from the folder that all share."""
    make_distribution(tmp_path, "mine", ["numpy"])
    assert "mine does not declare torch" in check(tmp_path, "mine", *installed_names())


def make_distribution(folder: Path, name: str, requires: list[str]) -> None:
    """Write the metadata of an installed distribution."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0"]
    lines += [f"Requires-Dist: {each}" for each in requires]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


def installed_names() -> set[str]:
    """Return what is installed here."""
    code = "import importlib.metadata as m; print(*{d.name for d in m.distributions()})"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True).split())


def check(folder: Path, *arguments: str) -> str:
    """Return the error of the check in an environment that has what is in a folder, too."""
    code = (
        f"import sys, runpy; sys.path.append({str(folder)!r}); sys.argv = {['x', *arguments]!r}; "
    )
    code += f"runpy.run_path({str(INSTALLED)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return done.stderr
