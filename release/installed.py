"""What an environment holds: only what was declared, and what a package brings beside torch.

nox runs this file with the Python of an environment::

    python -I release/installed.py "brain-ckpt[fast]" pytest hypothesis  # nothing else is there
    python -I release/installed.py --size brain-ckpt  # only how much it brings

It needs nothing but ``packaging``, which pytest brings.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterable

MEGABYTE = 1_000_000
INSTALLERS = {"pip", "setuptools", "uv", "wheel"}
# What `pip install NAME` brings beside torch and what that requires, without extras.
BRINGS = {
    "brain-dist": {"brain-dist", "numpy"},
    "brain-ckpt": {"brain-ckpt", "brain-dist", "numpy", "pyyaml"},
    "brain-data": {"brain-data", "brain-dist", "hyperpyyaml", "numpy", "pyyaml", "tqdm"},
    "brain-core": {
        *("brain-ckpt", "brain-core", "brain-data", "brain-dist"),
        *("hyperpyyaml", "numpy", "pyyaml", "tqdm"),
    },
}
BRINGS["brain-all"] = {"brain-all", *BRINGS["brain-core"]}
OF_HYPERPYYAML = {"ruamel-yaml", "ruamel-yaml-clib", "ruamel-yaml-clibz"}
# NumPy is all but 10 MB of it.
LIMITS_MB = dict.fromkeys(BRINGS, 110)


def requirements(name: str, extras: Iterable[str]) -> list[Requirement]:
    """Return what an installed distribution requires here, with some of its extras."""
    lines = metadata.requires(name) or []
    parsed = [Requirement(line) for line in lines]
    environments = [{"extra": extra} for extra in ("", *extras)]
    return [
        each
        for each in parsed
        if each.marker is None or any(each.marker.evaluate(env) for env in environments)
    ]


def closure(*roots: str) -> set[str]:
    """Return the names of all distributions that some requirements bring.

    Raises
    ------
    SystemExit
        If one of them is not installed.
    """
    found: dict[str, set[str]] = {}
    rest = [Requirement(root) for root in roots]
    while rest:
        wanted = rest.pop()
        name = canonicalize_name(wanted.name)
        if name in found and wanted.extras <= found[name]:
            continue
        found[name] = found.get(name, set()) | wanted.extras
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            sys.exit(f"{wanted} is declared but not installed")
        if not wanted.specifier.contains(here, prereleases=True):
            sys.exit(f"{wanted} is declared, but version {here} is installed")
        rest += requirements(name, found[name])
    return set(found)


def installed() -> set[str]:
    """Return the names of all distributions on the path, without those that install others."""
    names = (canonicalize_name(each.metadata["Name"]) for each in metadata.distributions())
    return {str(name) for name in names} - INSTALLERS


def megabytes(names: Iterable[str]) -> float:
    """Return how much the files of some distributions take, without what Python has compiled."""
    files = [file for name in names for file in metadata.files(name) or []]
    paths = {Path(file.locate()) for file in files if file.suffix != ".pyc"}
    return sum(path.stat().st_size for path in paths if path.exists()) / MEGABYTE


def brought(package: str) -> set[str]:
    """Return what a package brings beside torch and what torch requires."""
    return closure(package) - (closure("torch") - {"numpy"})


def check_declared(package: str, *tools: str) -> None:
    """Exit with a message if something is installed that neither package nor tools require."""
    undeclared = installed() - closure(package, *tools)
    if undeclared:
        sys.exit(
            f"{package} and the tools of its tests require everything that they use: "
            f"{', '.join(sorted(undeclared))} is installed but not declared. Declare it; if it is "
            "left from before, make the environment anew with `nox --reuse-venv no`"
        )
    for each in ("torch", "numpy"):  # pip's environments have these two from a common folder
        if each not in closure(package):
            sys.exit(f"{package} does not declare {each}, which it imports")


def check_size(package: str) -> str:
    """Return a line of what a package brings; exit with a message if it is more than allowed."""
    names = brought(package) - OF_HYPERPYYAML
    size = megabytes(brought(package))
    line = f"{package} brings {size:.0f} MB beside torch: {', '.join(sorted(names))}"
    if names != BRINGS[package] or size > LIMITS_MB[package]:
        allowed = f"{', '.join(sorted(BRINGS[package]))}, and at most {LIMITS_MB[package]} MB"
        sys.exit(f"{line}. Allowed: {allowed}. Make it an extra, or change {__file__}")
    return line


def main(*arguments: str) -> None:
    """Check the environment of the Python that runs this."""
    if arguments[0] == "--size":
        print(check_size(arguments[1]))
        return
    check_declared(*arguments)
    print(check_size(Requirement(arguments[0]).name))


if __name__ == "__main__":
    main(*sys.argv[1:])
