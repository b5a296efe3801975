"""List the published checkpoints of a directory, without a lock and without changing anything."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from brain_ckpt.errors import CheckpointDamagedError, CheckpointError
from brain_ckpt.retention.checkpoint import Checkpoint, ckpt_recency
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
from brain_ckpt.storage.manifest import (
    MANIFEST_LIMIT_BYTES,
    MANIFEST_NAME,
    Manifest,
    load_manifest,
)
from brain_ckpt.storage.meta import META_LIMIT_BYTES, load_meta
from brain_ckpt.storage.meta_arrays import restore_arrays

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# How often to list a directory that changes while it is listed.
_MAX_ATTEMPTS = 20


class Listing(NamedTuple):
    """The checkpoints of a directory.

    Parameters
    ----------
    checkpoints : list of Checkpoint
        From the oldest to the newest; checkpoints of equal time are ordered by `seq`.
    unreadable : dict of Path to str
        Checkpoints that cannot be listed, with the reason.
    seq : int
        The highest number of a save; 0 if there is none.
    """

    checkpoints: list[Checkpoint]
    unreadable: dict[Path, str]
    seq: int


class CheckpointGoneError(Exception):
    """A checkpoint was deleted while it was read."""


def list_published(root: Path) -> Listing:
    """List the checkpoints of a directory."""
    paths = _published_paths(root)
    for _ in range(_MAX_ATTEMPTS):
        listing = _read_all(paths)
        # A writer that replaces the only checkpoint during the listing would leave none to be seen.
        previous, paths = paths, _published_paths(root)
        if paths == previous:
            break
    return listing


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the meta of a checkpoint and the names of its files; no file is verified."""
    return _read(path)[0]


def _read(path: Path) -> tuple[Checkpoint, int]:
    """Return a checkpoint and its number, which is 0 if it has no intact manifest."""
    file = path / META_NAME
    try:
        content = filesystem.read(file, META_LIMIT_BYTES)
    except FileNotFoundError:
        if not path.is_dir():
            raise CheckpointGoneError from None
        raise CheckpointDamagedError(f"{path} has no {META_NAME}") from None
    meta = load_meta(content, str(file))
    manifest = _read_intact_manifest(path)
    if manifest is not None:
        restore_arrays(meta, manifest.meta_arrays)
    paramfiles = {
        name.removesuffix(PARAMFILE_EXT): path / name
        for name in filesystem.names(path)
        if name.endswith(PARAMFILE_EXT) and not os.path.isdir(path / name)
    }
    return Checkpoint(path, meta, paramfiles), 0 if manifest is None else manifest.seq


def read_manifest(path: Path) -> Manifest | None:
    """Read the manifest of a checkpoint; None if it has none because SpeechBrain wrote it."""
    file = path / MANIFEST_NAME
    try:
        content = filesystem.read(file, MANIFEST_LIMIT_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointDamagedError(f"{file} cannot be read: {error.strerror}") from error
    return load_manifest(content, str(file))


def looks_like_checkpoint(path: Path) -> bool:
    """Return whether a directory is, or was, a checkpoint."""
    # SpeechBrain writes CKPT.yaml first, so state files without it are what a deletion left.
    if (path / META_NAME).exists() or (path / MANIFEST_NAME).exists():
        return True
    return any(name.endswith(PARAMFILE_EXT) for name in filesystem.names(path))


def is_unfinished(path: Path) -> bool:
    """Return whether a directory is being written or deleted in place."""
    return os.path.lexists(path / UNFINISHED) and not has_manifest(path)


def has_manifest(path: Path) -> bool:
    """Return whether a directory has an intact manifest."""
    return _read_intact_manifest(path) is not None


def _published_paths(root: Path) -> list[Path]:
    names = filesystem.names(root)
    paths = {name: root / name for name in names if name.startswith(PREFIX)}
    for name in names:
        leftover = parse_leftover(name)
        if leftover is None:
            continue
        # A renamed checkpoint counts until its replacement exists; a replacement that is copied
        # counts as soon as it is complete.
        is_current = leftover.kind == OLD and leftover.checkpoint not in names
        if is_current or (leftover.kind == NEW and has_manifest(root / name)):
            paths[leftover.checkpoint] = root / name
    return [
        path
        for path in paths.values()
        if path.is_dir() and looks_like_checkpoint(path) and not is_unfinished(path)
    ]


def _read_all(paths: Iterable[Path]) -> Listing:
    entries: list[tuple[float, int, Checkpoint]] = []
    unreadable: dict[Path, str] = {}
    for path in paths:
        try:
            checkpoint, number = _read(path)
        except CheckpointGoneError:
            continue
        except (CheckpointError, OSError) as error:
            unreadable[path] = str(error)
            continue
        entries.append((ckpt_recency(checkpoint), number, checkpoint))
    entries.sort(key=lambda entry: entry[:2])
    seq = max((number for _, number, _ in entries), default=0)
    return Listing([checkpoint for _, _, checkpoint in entries], unreadable, seq)


def _read_intact_manifest(path: Path) -> Manifest | None:
    try:
        return read_manifest(path)
    except CheckpointError:
        return None
