"""Installing from an index by name, in every way that a user would."""

from __future__ import annotations

import re
import shutil
import venv
from pathlib import Path
from typing import TYPE_CHECKING

from release.steps import ReleaseError, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from release.index import Index

__all__ = ["Environment", "first_example", "rehearse_installs"]

ROOT = Path(__file__).parents[1]
# How to install, and the README whose first example then runs.
INSTALLS = {
    "brain-dist": "packages/brain-dist/README.md",
    "brain-ckpt": "packages/brain-ckpt/README.md",
    "brain-data": "packages/brain-data/README.md",
    "brain-core": "packages/brain-core/README.md",
    "brain-all": "README.md",
    "brain-all[all]": "README.md",
}
EXAMPLES_NEED = {"README.md": ("matplotlib", "scikit-learn")}


class Environment:
    """A new virtual environment.

    Parameters
    ----------
    folder : Path
        Where to make it.
    index_url : str
        The address of the index.
    torch : Path or None
        A folder with torch, which pip then takes as installed.
    """

    def __init__(self, folder: Path, index_url: str, torch: Path | None) -> None:
        self.folder = folder
        self._index = ("--index-url", f"{index_url}/simple/", "--no-compile")
        venv.create(folder, with_pip=True)
        self.python = folder / "bin/python"
        if torch is not None:
            command = "import sysconfig; print(sysconfig.get_path('purelib'))"
            site = Path(self.run("-c", command).strip())
            (site / "shared.pth").write_text(f"{torch}\n", encoding="utf-8")

    def run(self, *arguments: str, expected_code: int = 0) -> str:
        """Run its Python and return what it printed."""
        environ = {"OMP_NUM_THREADS": "1", "PYTHONPATH": "", "MPLBACKEND": "agg"}
        return run(
            [self.python, *arguments], cwd=self.folder, environ=environ, expected_code=expected_code
        )

    def install(self, *arguments: str) -> str:
        """Install with pip from the index."""
        return self.run("-m", "pip", "install", *self._index, *arguments)

    def versions(self) -> dict[str, str]:
        """Return the versions of the installed packages of this repository."""
        listed = self.run("-m", "pip", "list", "--format=freeze")
        return dict(re.findall(r"(?m)^(brain-\w+)==(\S+)$", listed))


def rehearse_installs(
    *,
    index: Index,
    publish_later: Callable[[], None],
    versions: tuple[str, str],
    scratch: Path,
    torch: Path | None,
) -> None:
    """Install each package, run its example and uninstall it; then upgrade one alone.

    Parameters
    ----------
    index : Index
        Holds the version that is rehearsed.
    publish_later : callable
        Uploads the next version.
    versions : (str, str)
        The version that is rehearsed, and the next one.
    scratch : Path
        For the environments.
    torch : Path or None
        As for `Environment`.

    Raises
    ------
    ReleaseError
        If something does not work as it should.
    """
    for number, (requirement, readme) in enumerate(INSTALLS.items()):
        env = Environment(scratch / str(number), index.url, torch)
        env.install(requirement, *EXAMPLES_NEED.get(readme, ()))
        print(f"pip install {requirement}: {', '.join(env.versions())}")
        if not EXAMPLES_NEED.get(readme):
            script = str(ROOT / "release/installed.py")
            print("  " + env.run("-I", script, "--size", requirement).strip())
        run_example(env, readme)
        uninstall(env, requirement)
        shutil.rmtree(env.folder)
    alone = Environment(scratch / "alone", index.url, torch)
    alone.install("brain-ckpt")
    together = Environment(scratch / "together", index.url, torch)
    together.install("brain-core")
    publish_later()
    upgrade_one(alone, together, *versions)


def first_example(readme: Path) -> str:
    """Return the first block of Python in a README."""
    found = re.search(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def run_example(env: Environment, readme: str) -> None:
    """Run the first example of a README with what is installed."""
    script = env.folder / "example.py"
    script.write_text(first_example(ROOT / readme), encoding="utf-8")
    printed = env.run("-W", "error", str(script)).strip().splitlines()
    print(f"  the first example of {readme}: ok{', ' + printed[-1] if printed else ''}")


def uninstall(env: Environment, requirement: str) -> None:
    """Uninstall a package and everything that came with it; nothing of it may be left."""
    named = requirement.partition("[")[0]
    env.run("-m", "pip", "uninstall", "--yes", named)
    if named in env.versions():
        raise ReleaseError(f"{named} is still installed after `pip uninstall`")
    if rest := env.versions():
        env.run("-m", "pip", "uninstall", "--yes", *rest)
    left = [str(path) for path in env.folder.glob("lib/*/site-packages/brain_*")]
    if left:
        raise ReleaseError(f"`pip uninstall` left {', '.join(left)}")
    print(f"  pip uninstall {named}, then {', '.join(rest) or 'nothing else'}: no file is left")


def upgrade_one(alone: Environment, together: Environment, old: str, new: str) -> None:
    """Upgrade brain-ckpt where it is installed alone, and beside brain-core."""
    alone.install("--upgrade", "brain-ckpt")
    expect(alone, {"brain-ckpt": new, "brain-dist": new})
    run_example(alone, INSTALLS["brain-ckpt"])
    print(f"pip install --upgrade brain-ckpt, alone: {old} to {new}, with brain-dist")

    printed = together.install("--upgrade", "brain-ckpt")
    if f"brain-core {old} requires brain-ckpt=={old}" not in printed:
        raise ReleaseError(f"pip did not say that the versions conflict:\n{printed}")
    print("pip install --upgrade brain-ckpt, beside brain-core: pip reports the conflict")
    printed = together.run("-c", "import brain_core", expected_code=1)
    if f"brain-core {old} requires brain-dist {old}" not in printed:
        raise ReleaseError(f"the import did not say that the versions conflict:\n{printed}")
    print(f"  import brain_core: {printed.strip().splitlines()[-1]}")
    together.install("--upgrade", "brain-core")
    expect(together, dict.fromkeys(("brain-ckpt", "brain-core", "brain-data", "brain-dist"), new))
    run_example(together, INSTALLS["brain-core"])
    print(f"pip install --upgrade brain-core: all are {new}")


def expect(env: Environment, versions: dict[str, str]) -> None:
    """Raise if other versions are installed than these."""
    if env.versions() != versions:
        raise ReleaseError(f"{versions} should be installed, {env.versions()} is")
