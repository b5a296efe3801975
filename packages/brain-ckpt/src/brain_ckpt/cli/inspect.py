"""Looking at checkpoints from outside a run: which there are, and whether each file is intact."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_ckpt.errors import CheckpointError
from brain_ckpt.recoverables.serialization import own_damage, read_state
from brain_ckpt.storage import filesystem
from brain_ckpt.storage.checksum import Digester, FileDigest
from brain_ckpt.storage.layout import META_NAME, PARAMFILE_EXT, parse_leftover
from brain_ckpt.storage.listing import (
    list_published,
    looks_like_checkpoint,
    read_checkpoint,
    read_manifest,
)
from brain_ckpt.storage.manifest import MANIFEST_NAME, Manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from brain_ckpt.retention.policies import Checkpoint
    from brain_ckpt.storage.checksum import Algorithm

_READ_BYTES = 2**20
_ALWAYS_IN_META = ("unixtime", "end-of-epoch", "brain_intra_epoch_ckpt", "step")


class WrongUseError(Exception):
    """What was asked for cannot be done; the text says what to do instead."""


@dataclass(frozen=True)
class FileCheck:
    """One file of a checkpoint.

    Parameters
    ----------
    name : str
        Below the directory, with forward slashes.
    size_bytes : int
        As it is now; 0 if it is not there.
    checked_by : str
        What vouches for it: "crc32" or "sha256" of the manifest, "zip crc32", or "nothing".
    problem : str or None
        What is wrong with it.
    """

    name: str
    size_bytes: int
    checked_by: str
    problem: str | None = None


@dataclass(frozen=True)
class Found:
    """What is in a directory of checkpoints.

    Parameters
    ----------
    checkpoints : list of Checkpoint
        The newest first.
    unreadable : dict of Path to str
        Those that cannot be listed, with the reason.
    unfinished : list of str
        Names of what a save that is under way, or was killed, has left.
    """

    checkpoints: list[Checkpoint]
    unreadable: dict[Path, str]
    unfinished: list[str]


def find(directory: str | Path) -> Found:
    """List a directory of checkpoints, or the one checkpoint that a path is of.

    Raises
    ------
    WrongUseError
        If it is not there.
    """
    path = Path(directory)
    if not path.is_dir():
        raise WrongUseError(
            f"DIR is a directory of checkpoints, got {os.fspath(directory)!r}, which is "
            f"{'a file' if path.exists() else 'not there'}; name the directory that holds the "
            f"CKPT+... directories"
        )
    if looks_like_checkpoint(path):
        try:
            return Found([read_checkpoint(path)], {}, [])
        except (CheckpointError, OSError) as error:
            return Found([], {path: str(error)}, [])
    listing = list_published(path)
    unfinished = [name for name in filesystem.names(path) if parse_leftover(name)]
    return Found(listing.checkpoints[::-1], listing.unreadable, unfinished)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read one checkpoint by its path; what is in its files is not looked at.

    Raises
    ------
    WrongUseError
        If the path is not that of a checkpoint.
    CheckpointError
        If its CKPT.yaml is damaged.
    """
    where = Path(path)
    if where.is_dir() and looks_like_checkpoint(where):
        return read_checkpoint(where)
    if not where.is_dir():
        got = "a file" if where.exists() else "not there"
        advice = "name a CKPT+... directory; brain-ckpt ls DIR lists them"
    else:
        held = list_published(where).checkpoints
        got = f"a directory of {len(held)} of them" if held else f"a directory without {META_NAME}"
        advice = f"name one, such as {held[-1].path}" if held else "name a CKPT+... directory"
    raise WrongUseError(
        f"CKPT is one checkpoint, got {os.fspath(path)!r}, which is {got}; {advice}"
    )


def check_files(
    checkpoint: Checkpoint, progress: Callable[[int], object] = lambda _: None
) -> Iterator[FileCheck]:
    """Compare every file of a checkpoint with what was written, and go on after damage.

    Parameters
    ----------
    checkpoint : Checkpoint
        Which one.
    progress : callable
        Is told how many bytes have been read since it was last told.

    Yields
    ------
    FileCheck
        One a file, the manifest too.
    """
    path = checkpoint.path
    try:
        manifest = read_manifest(path)
    except CheckpointError as error:
        yield FileCheck(MANIFEST_NAME, _size(path / MANIFEST_NAME), "crc32", str(error))
        return
    there = [name for name, directory in filesystem.walk(path) if not directory]
    if manifest is None:
        for name in there:
            yield _check_by_itself(path, name)
            progress(_size(path / name))
        return
    for name in sorted({*there, *manifest.files}):
        yield _check_by_manifest(path, name, manifest, progress)


def not_whole(checkpoints: Sequence[Checkpoint]) -> dict[Path, str]:
    """Find what a kill of SpeechBrain leaves: a checkpoint without files that older ones have.

    Parameters
    ----------
    checkpoints : sequence of Checkpoint
        The newest first.

    Returns
    -------
    dict of Path to str
        What is missing, of those that have no manifest to say so.
    """
    known: set[str] = set()
    found = {}
    for one in reversed(checkpoints):
        missing = known - one.paramfiles.keys()
        if missing and not (one.path / MANIFEST_NAME).exists():
            names = ", ".join(sorted(name + PARAMFILE_EXT for name in missing))
            found[one.path] = f"{names} is missing, which older checkpoints have"
        known |= one.paramfiles.keys()
    return found


def total_bytes(checkpoint: Checkpoint) -> int:
    """Return how many bytes the files of a checkpoint have."""
    path = checkpoint.path
    return sum(_size(path / name) for name, directory in filesystem.walk(path) if not directory)


def problems(
    checkpoint: Checkpoint, progress: Callable[[int], object] = lambda _: None
) -> list[str]:
    """Return what is wrong with a checkpoint; nothing if it is intact."""
    return [check.problem for check in check_files(checkpoint, progress) if check.problem]


def metrics(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what the save was told: meta, less what every checkpoint has."""
    return {key: value for key, value in checkpoint.meta.items() if key not in _ALWAYS_IN_META}


def step_of(checkpoint: Checkpoint) -> int | None:
    """Return the optimizer step of a checkpoint: of its manifest, its meta or its Brain."""
    try:
        manifest = read_manifest(checkpoint.path)
    except CheckpointError:
        manifest = None
    if manifest is not None and manifest.step is not None:
        return manifest.step
    if "brain" in checkpoint.paramfiles and "step" not in checkpoint.meta:
        try:
            state = read_state(checkpoint.paramfiles["brain"])
        except (CheckpointError, OSError):
            return None
        found = state.get("optimizer_step") if isinstance(state, dict) else None
    else:
        found = checkpoint.meta.get("step")
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _check_by_manifest(
    path: Path, name: str, manifest: Manifest, progress: Callable[[int], object]
) -> FileCheck:
    file, digest = path / name, manifest.files.get(name)
    if digest is not None:
        problem = _difference(file, digest, manifest.algorithm, progress)
        if problem is None and any(parent.is_symlink() for parent in _parents(path, name)):
            problem = "lies behind a link, which would lead out of the checkpoint"
        return FileCheck(name, _size(file), manifest.algorithm, problem and f"{name} {problem}")
    if name == MANIFEST_NAME:
        lacking = None if META_NAME in manifest.files else f"{name} does not know {META_NAME}"
        return FileCheck(name, _size(file), "crc32", lacking)
    # A note that somebody left there harms nothing; what would be loaded, or followed, does.
    harmful = name.endswith(PARAMFILE_EXT) or file.is_symlink()
    problem = f"{name} is there, and the manifest does not know it" if harmful else None
    return FileCheck(name, _size(file), "nothing", problem)


def _check_by_itself(path: Path, name: str) -> FileCheck:
    file = path / name
    if not name.endswith(PARAMFILE_EXT):
        return FileCheck(name, _size(file), "nothing")
    problem = own_damage(file)
    try:
        with filesystem.opened(file) as (descriptor, _):
            zipped = filesystem.read_at(descriptor, 2, 0) == b"PK"
    except OSError:
        zipped = False
    return FileCheck(name, _size(file), "zip crc32" if zipped else "nothing", problem)


def _difference(
    file: Path, digest: FileDigest, algorithm: Algorithm, progress: Callable[[int], object]
) -> str | None:
    digester = Digester(algorithm)
    try:
        with filesystem.opened(file) as (descriptor, size):
            if size != digest.size:
                return f"should have {digest.size} bytes, and has {size}"
            while part := os.read(descriptor, _READ_BYTES):
                digester.update(memoryview(part))
                progress(len(part))
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    found = digester.finish()
    if found == digest:
        return None
    pairs = zip(found.chunks, digest.chunks, strict=False)  # it may have changed size meanwhile
    wrong = next((n for n, (now, then) in enumerate(pairs) if now != then), 0)
    return f"is damaged: the {algorithm} of chunk {wrong + 1} of {len(digest.chunks)} is wrong"


def _parents(path: Path, name: str) -> list[Path]:
    parts = name.split("/")[:-1]
    return [path.joinpath(*parts[: count + 1]) for count in range(len(parts))]


def _size(file: Path) -> int:
    try:
        return os.lstat(file).st_size
    except OSError:
        return 0
