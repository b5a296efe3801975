"""The public surface changes on purpose only, and each change is in CHANGELOG.md."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RELEASED = HERE.parent / "released"


@pytest.fixture(scope="module")
def surface():
    """Give the module that describes the surface."""
    for package in ("brain_ckpt", "brain_core", "brain_data"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed here")
    spec = importlib.util.spec_from_file_location("packaging_surface", HERE / "surface.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_surface_is_the_one_in_the_file(surface):
    """If it should change, rewrite the file, and say in CHANGELOG.md what changed."""
    expected = surface.SURFACE.read_text(encoding="utf-8").splitlines()
    found = surface.surface().splitlines()
    gone, new = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    advice = "run `python tests/packaging/surface.py`, and name the change in CHANGELOG.md"
    assert (gone, new) == ([], []), advice


def test_each_change_since_the_last_release_is_in_the_changelog(surface):
    """Names that appeared, went, or take other parameters are written there as code."""
    versions = [path for path in RELEASED.iterdir() if (path / "surface.txt").exists()]
    last = max(versions, key=lambda path: [int(part) for part in path.name.split(".")])
    before = (last / "surface.txt").read_text(encoding="utf-8")
    now = surface.SURFACE.read_text(encoding="utf-8")
    missing = unmentioned(before, now, surface.changelog())
    assert missing == [], f"not in CHANGELOG.md, or not between backticks: {', '.join(missing)}"


def test_a_new_name_and_a_new_parameter_have_to_be_mentioned():
    """By the last part of the name, or that of its class."""
    before = "class a.Old(self, x)\na.kept(x)\n"
    now = "class a.Old(self, x, y=1)\na.kept(x)\nclass a.New(self)\na.New.run(self)\n"
    assert unmentioned(before, now, "") == ["a.New", "a.New.run", "a.Old"]
    assert unmentioned(before, now, "`Old` takes y. `New` is new.") == []
    assert unmentioned(before, "", "`Old` and `kept` are gone.") == []
    assert unmentioned(before, now, "Old and New") == ["a.New", "a.New.run", "a.Old"]


def unmentioned(before: str, now: str, changes: str) -> list[str]:
    """Return the names whose lines differ and that no code in a text mentions."""
    code = set(re.findall(r"[\w-]+", " ".join(re.findall(r"`([^`]*)`", changes))))
    lines = set(before.splitlines()) ^ set(now.splitlines())
    names = {
        re.match(r"(?:class |--?)?([\w.-]+)", line.removeprefix("script.py ")) for line in lines
    }
    return sorted({name[1] for name in names if not code & set(parts(name[1]))})


def parts(name: str) -> list[str]:
    """Return the name of a class or function, and that of a method, without the module."""
    return [part for part in name.split(".") if not re.fullmatch(r"brain_\w+|testing", part)]
