"""What importing a package does: check its version, and load modules at the first use of a name."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["check_same_version", "load_on_first_use"]


def load_on_first_use(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` for a package (PEP 562).

    ::

        __getattr__, __dir__ = load_on_first_use(__name__, {".parallel.wrap": "wrap_modules"})

    Parameters
    ----------
    package : str
        Its ``__name__``.
    homes : mapping of str to str
        By module (relative to the package if it begins with a dot), the names that it defines,
        separated by spaces.

    Returns
    -------
    tuple of two functions
        The first raises AttributeError for any other name.
    """
    home = {name: module for module, names in homes.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(home[name], package), name)
        setattr(sys.modules[package], name, value)  # found without this function from then on
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home})

    return get, names


def check_same_version(package: str, version: str) -> None:
    """Check at import that a package has the version of brain-dist.

    All packages of a release import brain-dist, so that those that pass have one version.

    Parameters
    ----------
    package : str
        Its ``__name__``.
    version : str
        Its ``__version__``.

    Raises
    ------
    ImportError
        If brain-dist has another version.
    """
    found = sys.modules["brain_dist"].__version__
    if found != version:
        name = package.replace("_", "-")
        raise ImportError(
            f"{name} {version} requires brain-dist {version}, but brain-dist {found} is installed. "
            f"Install one version of all packages: `pip install {name}=={version}`, or "
            f"`pip install --upgrade` with the name of every brain package that you have",
            name=package,
        )
