"""Checks for developers: ``nox`` runs what CI runs, ``nox -s NAME -- ARGS`` one session."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import nox
from nox.command import CommandFailed
from nox.project import dependency_groups, load_toml

ROOT = Path(__file__).parent
DIST = ROOT / "dist"
TORCH = "2.13"
MATRIX = (("3.10", "2.6"), ("3.11", "2.13"), ("3.12", "2.9"), ("3.13", "2.15"))
UNSUPPORTED = (("3.14", "2.15"),)  # tried if that Python is found, and reported without a verdict
PACKAGES = ("dist", "ckpt", "data", "core")
SIBLINGS = {"dist": (), "ckpt": ("dist",), "data": ("dist",), "core": ("dist", "ckpt", "data")}
# The extras that a package's own tests use; tests of an extra are skipped where it is missing.
EXTRAS = {
    "dist": "",
    "ckpt": "[fast,safetensors,fsspec,mirror]",
    "data": "[arrow]",
    "core": "[tensorboard,plot]",
}
TESTED = "[arrow,fast,fsspec,mirror,plot,safetensors,tensorboard]"
ALL_GROUPS = ("test", "repository", "examples")
KILL_OPTIONS = ("--kills", "--chain", "--case", "--minutes", "--without")
# The tests start hundreds of interpreters: each would compile torch again without bytecode files.
ENVIRON = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": None}
TAG = "import sys; print(sys.implementation.cache_tag)"
SITE = "import sysconfig; print(sysconfig.get_path('purelib'))"

nox.needs_version = ">=2025.5.1"
# uv links files into an environment, so that ten with torch take the disk space of one.
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = False
nox.options.download_python = "never"
isolated_by_default = [f"isolated(brain-{name})" for name in PACKAGES]
nox.options.sessions = ["lint", "types", *isolated_by_default, "meta"]

# pyenv's interpreters are found by name only if their folders are on the path.
for folder in Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/3.*/bin"):
    os.environ["PATH"] += os.pathsep + str(folder)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff; ``-- --fix`` fixes what it can."""
    session.install(*group("lint"), *pins())
    session.run("ruff", "check", *session.posargs, ".")
    session.run("ruff", "format", *([] if "--fix" in session.posargs else ["--check"]), ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the packages, of chaos and of this file with mypy, strictly."""
    share_torch(session, TORCH)
    session.install("--no-compile", *group("types"), *pins())
    session.run("mypy", *session.posargs)


@nox.session
def wheels(session: nox.Session) -> None:
    """Build the wheels and sdists of the five packages into dist/."""
    session.install("hatchling", *pins())
    for package in (*PACKAGES, "all"):
        with session.chdir(ROOT / "packages" / f"brain-{package}"):
            session.run_install("hatchling", "build", "-d", str(DIST), silent=True)


@nox.session(requires=["wheels"])
@nox.parametrize(
    ["package", "python", "torch"],
    [
        nox.param(name, python, torch, id=f"brain-{name}" + (f", {python}" if python else ""))
        for python, torch in ((None, TORCH), *MATRIX)
        for name in PACKAGES
    ],
)
def isolated(session: nox.Session, package: str, torch: str) -> None:
    """Run a package's own tests with only its wheel and what that declares installed."""
    install_wheels(session, package, *SIBLINGS[package], extras=EXTRAS[package], torch=torch)
    check_installed(session, f"brain-{package}{EXTRAS[package]}")
    run_pytest(session, f"tests/{package}")


@nox.session(requires=["wheels"])
def meta(session: nox.Session) -> None:
    """Install all five wheels through brain-all; test their contents, and whole scripts."""
    install_wheels(session, "all", *PACKAGES, groups=ALL_GROUPS)
    check_installed(session, "brain-all", groups=ALL_GROUPS)
    run_pytest(session, "tests/packaging", "tests/integration", "tests/released", "tests/docs")


@nox.session(requires=["wheels"], default=False)
def tests(session: nox.Session) -> None:
    """Run the whole suite in one environment: the tests of `isolated` and of `meta`."""
    install_wheels(session, "all", *PACKAGES, extras=TESTED, groups=ALL_GROUPS)
    run_pytest(session, "tests")


@nox.session(requires=["wheels"], default=False)
@nox.parametrize(["python", "torch"], [*MATRIX, *UNSUPPORTED])
def matrix(session: nox.Session, torch: str) -> None:
    """Run the whole suite on pairs of Python and torch; a missing Python is skipped."""
    try:
        install_wheels(session, "all", *PACKAGES, extras=TESTED, groups=ALL_GROUPS, torch=torch)
        run_pytest(session, "tests")
    except CommandFailed as error:
        if (session.python, torch) not in UNSUPPORTED:
            raise
        session.warn(f"Python {session.python} is not supported yet, which does not count: {error}")


@nox.session(requires=["wheels"], default=False, python=MATRIX[0][0])
def minimums(session: nox.Session) -> None:
    """Run the whole suite on the lowest versions that the packages' requirements name."""
    lowest = minimum_pins()
    pinned = {pin.partition("==")[0] for pin in lowest}
    tools = (ROOT / "constraints/tools.txt").read_text(encoding="utf-8").splitlines()
    others = [line for line in tools if line.partition("==")[0] not in pinned]
    constraints = Path(session.create_tmp()) / "minimums.txt"
    constraints.write_text("\n".join([*lowest, *others]), encoding="utf-8")
    install_wheels(
        session, "all", *PACKAGES, extras=TESTED, groups=ALL_GROUPS, constraints=constraints
    )
    run_pytest(session, "tests")


@nox.session(requires=["wheels"], default=False)
def demo(session: nox.Session) -> None:
    """Train examples/g2p in about two minutes, test it, and print where the results are."""
    install_wheels(session, "core", *SIBLINGS["core"], extras="[plot]", groups=("examples",))
    session.run("python", "examples/g2p/train.py", "examples/g2p/hparams.yaml", *session.posargs)


@nox.session(requires=["wheels"], default=False)
def chaos(session: nox.Session) -> None:
    """Kill runs, ``-- --kills 1000``, ``-- readers``, ``-- soak``, or a package's long tests."""
    install_wheels(session, "all", *PACKAGES, extras=TESTED, groups=(*ALL_GROUPS, "streams"))
    if session.posargs[:1] in (["readers"], ["soak"]):
        session.run("python", "-m", "chaos", *session.posargs)
        return
    packages = [name for name in session.posargs if name in PACKAGES]
    rest = [name for name in session.posargs if name not in PACKAGES]
    kills = any(name.startswith(KILL_OPTIONS) for name in rest)
    if packages or not kills:
        folders = [f"tests/{name}" for name in packages or (*PACKAGES, "integration")]
        env = {**ENVIRON, "BRAIN_CHAOS": "1"}
        session.run("python", "-m", "pytest", *folders, *([] if kills else rest), env=env)
    if kills or not session.posargs:
        session.run("python", "-m", "chaos", *(rest or ("--kills", "1000", "--chain", "100")))


@nox.session(requires=["wheels"], default=False)
def parity(session: nox.Session) -> None:
    """Compare public functions with SpeechBrain's over random arguments: ``PARITY_RUNS=1000``."""
    install_wheels(session, "all", *PACKAGES, groups=("test", "parity"))
    session.run("python", "-m", "pytest", "tests/parity", *session.posargs, env=ENVIRON)


@nox.session(requires=["wheels"], default=False)
def bench(session: nox.Session) -> None:
    """Measure beside other libraries; ``-- ckpt``, ``-- --quick``, ``-- --docs`` for the site."""
    install_wheels(session, "all", *PACKAGES, extras=TESTED, groups=("examples", "bench"))
    known = sorted((ROOT / "benchmarks").glob("[!_]*.py"))
    named = [path for path in known if any(path.stem.startswith(a) for a in session.posargs)]
    rest = [a for a in session.posargs if not any(path.stem.startswith(a) for path in known)]
    written = [rest.pop(rest.index("--docs"))] if "--docs" in rest else []
    quick = [path for path in known if "take_quick" in path.read_text(encoding="utf-8")]
    rows = Path(session.create_tmp()) / "rows.jsonl"
    rows.write_text("", encoding="utf-8")
    for path in named or (quick if "--quick" in rest else known):
        two_ranks = ("torchrun", "--standalone", "--nproc-per-node", "2")
        start = two_ranks if path.stem.startswith("dist") else ("python",)
        session.run(*start, str(path), *rest, env={**ENVIRON, "BRAIN_BENCH_ROWS": str(rows)})
    session.run("python", "benchmarks/_verdict.py", str(rows), *written)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Build the documentation into site/, with warnings as errors; ``-- serve`` shows it."""
    session.install(*group("docs"), *pins())
    command = session.posargs or ["build"]
    session.run("mkdocs", *command, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session(default=False)
def release(session: nox.Session) -> None:
    """Build what is published, twice, and check it; ``-- --rehearse`` also installs it."""
    session.install(*group("release"), *pins())
    torch = str(torch_folder(session, TORCH))
    session.run("python", "-m", "release", "--torch", torch, *session.posargs)


@nox.session(venv_backend="none", default=False)
def bump(session: nox.Session) -> None:
    """Set the version of all packages: ``nox -s bump -- 0.2.0``."""
    if len(session.posargs) != 1 or not re.fullmatch(r"\d+\.\d+\.\d+", session.posargs[0]):
        session.error(f"bump takes one version such as 0.2.0, got {session.posargs!r}")
    new = session.posargs[0]
    old = version()
    pinned = re.compile(
        rf'(?m)(^version = "|^__version__ = "|"brain-\w+(?:\[[\w,-]*\])?==){re.escape(old)}"'
    )
    files = [*ROOT.glob("packages/*/pyproject.toml"), *ROOT.glob("packages/*/src/*/__init__.py")]
    for path in files:
        text, count = pinned.subn(rf'\g<1>{new}"', path.read_text(encoding="utf-8"))
        path.write_text(text, encoding="utf-8")
        session.log(f"{path.relative_to(ROOT)}: changed {old} to {new} in {count} places")
    changes = ROOT / "CHANGELOG.md"
    text = changes.read_text(encoding="utf-8").replace(
        "## Unreleased\n", f"## Unreleased\n\n## {new}\n", 1
    )
    changes.write_text(text, encoding="utf-8")


def group(*names: str) -> tuple[str, ...]:
    """Return the requirements of dependency groups of the root pyproject.toml."""
    return dependency_groups(load_toml(ROOT / "pyproject.toml"), *names)


def version() -> str:
    """Return the version that the five packages share."""
    project = load_toml(ROOT / "packages/brain-all/pyproject.toml")["project"]
    return str(project["version"])


def pins(torch: str = TORCH) -> tuple[str, str]:
    """Return pip's arguments that pin one torch and the tools."""
    return "-c", str(ROOT / f"constraints/torch-{torch}.txt")


def minimum_pins() -> list[str]:
    """Return each requirement ``name>=version`` of the packages as ``name==version``."""
    files = sorted((ROOT / "packages").glob("brain-*/pyproject.toml"))
    texts = [path.read_text(encoding="utf-8") for path in files]
    found = {pin for text in texts for pin in re.findall(r'"([\w.-]+>=[\d.]+)"', text)}
    return sorted(pin.replace(">=", "==") for pin in found if not pin.startswith("hatchling"))


def torch_folder(session: nox.Session, torch: str) -> Path:
    """Return a folder with torch and the test tools, for this Python; install it if it is new."""
    tag = ask_python(session, TAG)
    folder = ROOT / f".nox/shared-{tag}-torch-{torch}"
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        session.install("--no-compile", "--target", str(partial), *group("shared"), *pins(torch))
        partial.rename(folder)
    return folder


def ask_python(session: nox.Session, script: str) -> str:
    """Return what a script prints in the session's environment; also with -R or --install-only."""
    # Each of the two options skips one of these calls.
    asked = session.run_install("python", "-c", script, silent=True)
    return str(asked or session.run("python", "-c", script, silent=True)).strip()


def share_torch(session: nox.Session, torch: str) -> None:
    """Let pip's environments find torch and the test tools in one folder, installed once.

    pip takes what is there as installed, and installs only the rest. uv needs no such folder: it
    links the files of its cache into each environment.
    """
    if session.venv_backend != "uv":
        shared = Path(ask_python(session, SITE), "shared.pth")
        shared.write_text(f"{torch_folder(session, torch)}\n", encoding="utf-8")


def install_wheels(
    session: nox.Session,
    *packages: str,
    extras: str = "",
    groups: tuple[str, ...] = ("test",),
    torch: str = TORCH,
    constraints: Path | None = None,
) -> None:
    """Install the wheels of some packages, the extras of the first, and the tools of ``groups``.

    Every wheel is named by its file, so that no index is asked for these packages. Not compiling
    torch saves half a minute per environment. The second command replaces an earlier build in an
    environment that is reused.
    """
    pinned = ("-c", str(constraints)) if constraints else pins(torch)
    if not constraints:
        share_torch(session, torch)
    built = {name: DIST / f"brain_{name}-{version()}-py3-none-any.whl" for name in packages}
    first, *others = packages
    named = [
        f"brain-{first}{extras} @ {built[first].as_uri()}",
        *(str(built[name]) for name in others),
    ]
    session.install("--no-compile", *named, *group(*groups), *pinned)
    session.install("--no-deps", "--force-reinstall", *(str(path) for path in built.values()))


def check_installed(
    session: nox.Session, requirement: str, groups: tuple[str, ...] = ("test",)
) -> None:
    """Fail if the environment holds anything but what the requirement and the tools declare."""
    script = str(ROOT / "release/installed.py")
    session.run("python", "-I", script, requirement, *group(*groups))


def run_pytest(session: nox.Session, *folders: str) -> None:
    """Run pytest on three workers with one thread each, and with the arguments after ``--``."""
    # Many tests wait for ranks or the disk: on two cores a third worker saves a sixth of the time.
    is_shared = not {"-n", "-n0", "--pdb"} & set(session.posargs)
    workers = ("-n", "3", "--dist", "worksteal") if is_shared else ()
    env = {**ENVIRON, "BRAIN_WHEELS": str(DIST)}
    chosen = [arg for arg in session.posargs if (ROOT / arg.split("::")[0]).exists()]
    named = [] if chosen else folders
    session.run("python", "-m", "pytest", *workers, *named, *session.posargs, env=env)
