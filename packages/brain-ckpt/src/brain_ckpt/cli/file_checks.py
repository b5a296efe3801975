"""Compare every file of a checkpoint with what was written, and report each of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from brain_ckpt.storage import filesystem
from brain_ckpt.storage.checksum import Digester, FileDigest
from brain_ckpt.storage.file_format import file_format, find_damage
from brain_ckpt.storage.layout import META_NAME, PARAMFILE_EXT
from brain_ckpt.storage.manifest import MANIFEST_NAME, Manifest
from brain_ckpt.storage.opened import gone_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from brain_ckpt.storage.checksum import Algorithm
    from brain_ckpt.storage.opened import OpenedCheckpoint

_READ_BYTES = 2**20


@dataclass(frozen=True)
class FileCheck:
    """One file of a checkpoint.

    Parameters
    ----------
    name : str
        Below the directory, with forward slashes.
    size_bytes : int
        Its size; 0 if it does not exist.
    checked_by : str
        "crc32" or "sha256" for the manifest, "zip crc32", or "nothing".
    problem : str or None
        The damage, if there is any.
    note : str or None
        That the file is not part of the checkpoint.
    """

    name: str
    size_bytes: int
    checked_by: str
    problem: str | None = None
    note: str | None = None


def check_files(
    opened: OpenedCheckpoint, progress: Callable[[int], object] = lambda _: None
) -> Iterator[FileCheck]:
    """Compare every file of a checkpoint with what was written, also after damage.

    Parameters
    ----------
    opened : OpenedCheckpoint
        The checkpoint.
    progress : callable
        Called with the number of bytes read since the last call.

    Yields
    ------
    FileCheck
        One for each file, including the manifest.
    """
    path, manifest = opened.directory, opened.manifest
    if opened.problem is not None:
        size_bytes = file_size(opened.locate(MANIFEST_NAME))
        yield FileCheck(MANIFEST_NAME, size_bytes, "crc32", str(opened.problem))
        return
    existing = [name for name, directory in filesystem.walk(path) if not directory]
    if manifest is None:
        for name in existing:
            yield _check_without_manifest(opened.locate(name), name)
            progress(file_size(opened.locate(name)))
        return
    for name in sorted({*existing, *manifest.files}):
        yield _check_by_manifest(opened, name, manifest, progress)


def problems(
    opened: OpenedCheckpoint, progress: Callable[[int], object] = lambda _: None
) -> list[str]:
    """Return the damage of a checkpoint; nothing if it is intact.

    Raises
    ------
    CheckpointGoneError
        If the damage is that of a checkpoint that was deleted meanwhile.
    """
    found = [check.problem for check in check_files(opened, progress) if check.problem]
    if found and not opened.is_current():
        raise gone_error(opened.checkpoint.path)
    return found


def file_size(file: Path) -> int:
    """Return the size of a file in bytes; 0 if it is not one that can be opened."""
    try:
        with filesystem.opened(file) as (_, size_bytes):
            return size_bytes
    except OSError:
        return 0


def _check_by_manifest(
    opened: OpenedCheckpoint, name: str, manifest: Manifest, progress: Callable[[int], object]
) -> FileCheck:
    file, digest = opened.locate(name), manifest.files.get(name)
    if digest is not None:
        problem = _difference(file, digest, manifest.algorithm, progress)
        parents = _parents(opened.directory, name)
        if problem is None and any(parent.is_symlink() for parent in parents):
            problem = "is behind a link that leads out of the checkpoint"
        return FileCheck(name, file_size(file), manifest.algorithm, problem and f"{name} {problem}")
    if name == MANIFEST_NAME:
        missing = None if META_NAME in manifest.files else f"{META_NAME} is not in the manifest"
        return FileCheck(name, file_size(file), "crc32", missing)
    return FileCheck(name, file_size(file), "nothing", note="not part of the checkpoint")


def _check_without_manifest(file: Path, name: str) -> FileCheck:
    if not name.endswith(PARAMFILE_EXT):
        return FileCheck(name, file_size(file), "nothing")
    problem = find_damage(file, Path(name).name)
    try:
        zipped = file_format(file) == "zip"
    except OSError:
        zipped = False
    return FileCheck(name, file_size(file), "zip crc32" if zipped else "nothing", problem)


def _difference(
    file: Path, digest: FileDigest, algorithm: Algorithm, progress: Callable[[int], object]
) -> str | None:
    digester = Digester(algorithm)
    try:
        with filesystem.opened(file) as (descriptor, size):
            if size != digest.size:
                return f"must have {digest.size} bytes, got {size}"
            while part := os.read(descriptor, _READ_BYTES):
                digester.update(memoryview(part))
                progress(len(part))
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    actual = digester.finish()
    if actual == digest:
        return None
    pairs = zip(actual.chunks, digest.chunks, strict=False)  # the size can change meanwhile
    wrong = next((n for n, (read, written) in enumerate(pairs) if read != written), 0)
    return f"is damaged: the {algorithm} of chunk {wrong + 1} of {len(digest.chunks)} is wrong"


def _parents(path: Path, name: str) -> list[Path]:
    parts = name.split("/")[:-1]
    return [path.joinpath(*parts[: count + 1]) for count in range(len(parts))]
