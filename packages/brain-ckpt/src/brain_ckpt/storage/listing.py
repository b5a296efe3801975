"""What is published in a directory of checkpoints: listed without a lock, changing nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from brain_ckpt.errors import CheckpointDamagedError, CheckpointError
from brain_ckpt.retention.policies import Checkpoint, ckpt_recency
from brain_ckpt.storage import filesystem
from brain_ckpt.storage.layout import (
    META_NAME,
    NEW,
    OLD,
    PARAMFILE_EXT,
    PREFIX,
    UNFINISHED,
    parse_leftover,
)
from brain_ckpt.storage.manifest import MANIFEST_LIMIT_BYTES, MANIFEST_NAME, Manifest, load_manifest
from brain_ckpt.storage.meta import META_LIMIT_BYTES, load_meta

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# How often a directory that changes while it is listed is listed anew.
_LOOKS = 20


class Listing(NamedTuple):
    """What is in a directory of checkpoints.

    Parameters
    ----------
    checkpoints : list of Checkpoint
        From the oldest to the newest; of equal times by `seq`.
    unreadable : dict of Path to str
        Directories that are checkpoints and cannot be listed, with the reason.
    seq : int
        The highest that was seen; 0 where there is none.
    """

    checkpoints: list[Checkpoint]
    unreadable: dict[Path, str]
    seq: int


class GoneError(Exception):
    """A checkpoint was deleted while it was looked at."""


def list_published(root: Path) -> Listing:
    """List the checkpoints in a directory; a reader needs no lock and changes nothing."""
    paths = _published(root)
    for _ in range(_LOOKS):
        listing = _read_all(paths)
        # A writer that replaces the only one meanwhile would leave none to be seen.
        before, paths = paths, _published(root)
        if paths == before:
            break
    return listing


def _read_all(paths: Iterable[Path]) -> Listing:
    found: list[tuple[float, int, Checkpoint]] = []
    unreadable: dict[Path, str] = {}
    seq = 0
    for path in paths:
        try:
            checkpoint = read_checkpoint(path)
        except GoneError:
            continue
        except (CheckpointError, OSError) as error:
            unreadable[path] = str(error)
            continue
        number = _read_seq(path)
        seq = max(seq, number)
        found.append((ckpt_recency(checkpoint), number, checkpoint))
    found.sort(key=lambda entry: entry[:2])
    return Listing([entry[2] for entry in found], unreadable, seq)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read what a checkpoint says of itself, and which files it has; no file is verified."""
    file = path / META_NAME
    try:
        content = filesystem.read(file, META_LIMIT_BYTES)
    except FileNotFoundError:
        if not path.is_dir():
            raise GoneError from None
        raise CheckpointDamagedError(f"{path} has no {META_NAME}") from None
    meta = load_meta(content, str(file))
    paramfiles = {
        name.removesuffix(PARAMFILE_EXT): path / name
        for name in filesystem.names(path)
        if name.endswith(PARAMFILE_EXT) and not os.path.isdir(path / name)
    }
    return Checkpoint(path, meta, paramfiles)


def read_manifest(path: Path) -> Manifest | None:
    """Read the manifest of a checkpoint; None if SpeechBrain wrote it."""
    file = path / MANIFEST_NAME
    try:
        content = filesystem.read(file, MANIFEST_LIMIT_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointDamagedError(f"{file} cannot be read: {error.strerror}") from error
    return load_manifest(content, str(file))


def looks_like_checkpoint(path: Path) -> bool:
    """Say whether a directory is, or was once, a checkpoint."""
    # SpeechBrain writes CKPT.yaml first, so that tensors without it were a checkpoint once.
    if (path / META_NAME).exists() or (path / MANIFEST_NAME).exists():
        return True
    return any(name.endswith(PARAMFILE_EXT) for name in filesystem.names(path))


def is_unfinished(path: Path) -> bool:
    """Say whether a directory is still being written, or deleted, where nothing is renamed."""
    return os.path.lexists(path / UNFINISHED) and not has_manifest(path)


def has_manifest(path: Path) -> bool:
    """Say whether a directory has a manifest that is as it was written."""
    try:
        return read_manifest(path) is not None
    except CheckpointError:
        return False


def _published(root: Path) -> list[Path]:
    names = filesystem.names(root)
    paths = {name: root / name for name in names if name.startswith(PREFIX)}
    for name in names:
        leftover = parse_leftover(name)
        if leftover is None:
            continue
        # One that stepped aside counts while its successor is not there; one that is to be
        # copied over another counts from when it is whole.
        aside = leftover.kind == OLD and leftover.checkpoint not in names
        if aside or (leftover.kind == NEW and has_manifest(root / name)):
            paths[leftover.checkpoint] = root / name
    return [
        path
        for path in paths.values()
        if path.is_dir() and looks_like_checkpoint(path) and not is_unfinished(path)
    ]


def _read_seq(path: Path) -> int:
    try:
        manifest = read_manifest(path)
    except CheckpointError:
        return 0
    return 0 if manifest is None else manifest.seq
