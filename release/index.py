"""A real package index on this machine, for as long as a rehearsal takes."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

from release.steps import ReleaseError, run

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self

__all__ = ["Index", "upload"]

_START_S = 60.0


class Index:
    """An index on loopback, empty at first.

    What it does not have, it leaves to the usual index: `pip install --index-url` needs no other
    address, and takes the packages of this repository from nowhere else.

    Parameters
    ----------
    folder : Path
        Where it keeps what is uploaded; is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, "-m", "pypiserver", "run", "-i", "127.0.0.1"]
        self._command += ["-p", str(port), "-a", ".", "-P", ".", str(folder)]
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it and wait until it answers."""
        self.folder.mkdir()
        self._server = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if self._server.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise ReleaseError(f"the index did not start: {' '.join(self._command)}")
            time.sleep(0.1)
        print(f"index: {self.url}")
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        assert self._server is not None
        self._server.terminate()
        self._server.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/simple/", timeout=5):  # noqa: S310 - our own
                return True
        except (urllib.error.URLError, OSError):
            return False


def upload(files: list[Path], url: str) -> None:
    """Upload files to an index with twine."""
    options = ["--non-interactive", "--disable-progress-bar", "--repository-url", f"{url}/"]
    command = [sys.executable, "-m", "twine", "upload", *options, "-u", "any", "-p", "any"]
    run([*command, *files], cwd=files[0].parent)
    print(f"twine upload: {len(files)} files of version {files[0].name.split('-')[1]}")
