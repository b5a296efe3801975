"""A description of the environment of an experiment, to reproduce it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

_GIT_TIMEOUT_SECONDS = 10


def get_environment_description(directory: str | os.PathLike[str] | None = None) -> str:
    """Return a description of Python, torch, the devices, the packages and the git commit.

    Environment variables are not included: they may hold passwords.

    Parameters
    ----------
    directory : path, optional
        A directory in the git repository of the experiment; default: the working directory.

    Examples
    --------
    >>> get_environment_description().splitlines()[0]
    'System description'
    """
    sections = {
        "Python": f"{sys.version}\n{sys.executable}",
        "Platform": f"{platform.platform()}\n{os.cpu_count()} CPUs",
        "torch": _torch(),
        "Devices": "\n".join(_devices()),
        "Git": _git(os.fspath(directory or Path.cwd())),
        "Installed packages": "\n".join(_packages()),
    }
    line = "=" * 30
    parts = [f"{line}\n{name}:\n{text}" for name, text in sections.items()]
    return "System description\n" + "\n".join(parts) + "\n"


def _torch() -> str:
    lines = [f"{torch.__version__} (git {torch.version.git_version})"]
    for name, version in (("CUDA", torch.version.cuda), ("ROCm", torch.version.hip)):
        if version:
            lines.append(f"built for {name} {version}")
    cudnn: Any = torch.backends.cudnn
    if cudnn.is_available():
        lines.append(f"cuDNN {cudnn.version()}")
    lines.append(f"{torch.get_num_threads()} threads")
    return "\n".join(lines)


def _devices() -> list[str]:
    devices = [f"cpu: {platform.processor() or platform.machine()}"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        devices.append(f"cuda:{index}: {properties.name}, {memory:.1f} GiB")
    if torch.backends.mps.is_available():
        devices.append("mps")
    if torch.xpu.is_available():
        devices += [
            f"xpu:{i}: {torch.xpu.get_device_name(i)}" for i in range(torch.xpu.device_count())
        ]
    return devices


def _git(directory: str) -> str:
    def git(*args: str) -> str:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            ["git", "-C", directory, *args],  # noqa: S607 - the user's own git
            capture_output=True,
            text=True,
            check=True,
            timeout=_GIT_TIMEOUT_SECONDS,
        )
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return f"no commit could be read in {directory}"
    return commit + (f"\nwith uncommitted changes:\n{changed}" if changed else "")


def _packages() -> list[str]:
    found = {
        f"{package.metadata['Name']}=={package.version}"
        for package in importlib.metadata.distributions()
        # A partially removed package has no name.
        if package.metadata["Name"]
    }
    return sorted(found, key=str.lower)
