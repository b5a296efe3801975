"""Wheels and sdists, built from a clean clone in the same way each time."""

from __future__ import annotations

import re
import sys
import tarfile
from typing import TYPE_CHECKING

from release.steps import run

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = [
    "DISTRIBUTIONS",
    "build",
    "build_from_sdists",
    "bump",
    "clean_clone",
    "differing_files",
]

DISTRIBUTIONS = ("brain-all", "brain-ckpt", "brain-core", "brain-data", "brain-dist")


def clean_clone(repository: Path, target: Path) -> Path:
    """Clone the last commit, so that nothing that is not committed gets into a release."""
    run(["git", "clone", "--quiet", repository, target], cwd=repository)
    return target


def build(clone: Path, target: Path) -> list[Path]:
    """Build all packages of a clone and return the files.

    Their timestamps are that of the last commit, so that the bytes depend on the source alone.
    """
    epoch = run(["git", "log", "-1", "--format=%ct"], cwd=clone).strip()
    for name in DISTRIBUTIONS:
        _build(clone / "packages" / name, target, epoch)
    return sorted(target.iterdir())


def build_from_sdists(files: Iterable[Path], target: Path) -> list[Path]:
    """Build a wheel from each sdist among some files, as pip does where no wheel fits."""
    for sdist in (file for file in files if file.suffix == ".gz"):
        folder = target / "source"
        with tarfile.open(sdist) as opened:
            epoch = str(opened.getmembers()[0].mtime)
            opened.extractall(folder, filter="data")
        _build(folder / sdist.name.removesuffix(".tar.gz"), target, epoch, "-t", "wheel")
    return sorted(target.glob("*.whl"))


def _build(package: Path, target: Path, epoch: str, *options: str) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(target), *options]
    run(command, cwd=package, environ={"SOURCE_DATE_EPOCH": epoch})


def differing_files(first: Iterable[Path], second: Iterable[Path]) -> list[str]:
    """Return the names of files that are missing in one of two lists, or have other bytes."""
    one, other = ({path.name: path.read_bytes() for path in each} for each in (first, second))
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def bump(clone: Path) -> str:
    """Set the version of a clone to the next one, commit, and return it."""
    text = (clone / "packages/brain-all/pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'(?m)^version = "(\d+)\.(\d+)\.(\d+)"$', text)
    assert found is not None
    later = f"{found[1]}.{found[2]}.{int(found[3]) + 1}"
    run([sys.executable, "-m", "nox", "-s", "bump", "--", later], cwd=clone)
    author = ("-c", "user.name=rehearsal", "-c", "user.email=rehearsal@localhost")
    run(["git", *author, "commit", "--quiet", "-a", "-m", f"Version {later}"], cwd=clone)
    return later
