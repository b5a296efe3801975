"""List the published checkpoints of a directory, without a lock and without changing anything."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, NamedTuple

from brain_ckpt.errors import CheckpointError, CheckpointGoneError
from brain_ckpt.retention.checkpoint import Checkpoint, ckpt_recency
from brain_ckpt.storage import filesystem
from brain_ckpt.storage.known import Entry, KnownCheckpoints
from brain_ckpt.storage.layout import (
    META_NAME,
    NEW,
    OLD,
    PARAMFILE_EXT,
    PREFIX,
    UNFINISHED,
    parse_leftover,
)
from brain_ckpt.storage.lock import LOCK_NAME
from brain_ckpt.storage.manifest import MANIFEST_NAME
from brain_ckpt.storage.opened import Patience, open_checkpoint, read_manifest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

# A directory is listed until two listings agree, at most so often.
_MAX_CHANGES = 5
# None is seen beside a writer in so many listings: there is none.
_MAX_EMPTY = 10


class _NotACheckpointError(Exception):
    """A path is a foreign file or directory, or not yet or no longer a checkpoint."""


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


def list_published(root: Path, known: KnownCheckpoints | None = None) -> Listing:
    """List the checkpoints of a directory; none means that none was ever published.

    Parameters
    ----------
    root : Path
        The directory.
    known : KnownCheckpoints, optional
        What was read before; it is used and completed.

    Raises
    ------
    CheckpointGoneError
        If all checkpoints are deleted again and again while they are listed.
    """
    known = KnownCheckpoints() if known is None else known
    names = filesystem.names(root)
    empty = 0
    patience = Patience(root)
    changes = 0
    unchanged, state = 0, None
    while True:
        paths = _published_paths(root, names).values()
        listing, gone = read_all(paths, known)
        known.keep_only(paths)
        previous, names = names, filesystem.names(root)
        former, state = state, _state_of(names, gone)
        unchanged = unchanged + 1 if gone and state == former else 0
        if unchanged >= _MAX_EMPTY:  # nobody deletes them: their files are missing
            listing.unreadable.update(gone)
            gone = {}
        is_stable = not gone and (_published(names) == _published(previous))
        if listing.checkpoints or listing.unreadable:
            changes += 1
            if is_stable or changes > _MAX_CHANGES:
                return listing
            continue
        # Listing a directory is not atomic: a checkpoint can be renamed while it is listed.
        empty = empty + 1 if is_stable else 0
        if empty and (empty >= _MAX_EMPTY or not _was_written(names)):
            return listing
        patience.wait()


def published_directory(path: Path) -> Path:
    """Return where a checkpoint is; while it is replaced, this is not its usual path."""
    return _published_paths(path.parent, filesystem.names(path.parent)).get(path.name, path)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the meta of a checkpoint and the names of its files; no file is verified."""
    with open_checkpoint(path) as opened:
        return opened.checkpoint


def looks_like_checkpoint(path: Path) -> bool:
    """Return whether a directory is, or was, a checkpoint."""
    # SpeechBrain writes CKPT.yaml first, so state files without it are what a deletion left.
    if any(os.path.exists(os.path.join(path, name)) for name in (META_NAME, MANIFEST_NAME)):
        return True
    return any(name.endswith(PARAMFILE_EXT) for name in filesystem.names(path))


def is_unfinished(path: Path) -> bool:
    """Return whether a directory is being written or deleted in place."""
    return os.path.lexists(os.path.join(path, UNFINISHED)) and not has_manifest(path)


def has_manifest(path: Path) -> bool:
    """Return whether a directory has an intact manifest."""
    try:
        return read_manifest(path) is not None
    except CheckpointError:
        return False


def _published_paths(root: Path, names: Sequence[str]) -> dict[str, Path]:
    """Return the directories of the published checkpoints, by name."""
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
    return paths


def _published(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(PREFIX) or parse_leftover(name)]


def _was_written(names: Iterable[str]) -> bool:
    return any(name == LOCK_NAME or parse_leftover(name) for name in names)


def _state_of(
    names: Sequence[str], paths: Iterable[Path]
) -> tuple[list[str], list[tuple[int, int] | None]]:
    """Return what changes when the names, or one of these directories, do."""
    return sorted(names), [_identity(path) for path in paths]


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def read_all(paths: Iterable[Path], known: KnownCheckpoints) -> tuple[Listing, dict[Path, str]]:
    """Return what can be read, and the checkpoints that seem to be deleted meanwhile."""
    entries: list[tuple[float, int, Checkpoint]] = []
    unreadable: dict[Path, str] = {}
    gone: dict[Path, str] = {}
    for path in paths:
        try:
            checkpoint, number = known.get(path, functools.partial(_read_one, path))
        except _NotACheckpointError:  # noqa: PERF203 - each is one outcome of a path
            continue
        except CheckpointGoneError as error:
            gone[path] = str(error)
        except (CheckpointError, OSError) as error:
            unreadable[path] = str(error)
        else:
            entries.append((ckpt_recency(checkpoint), number, checkpoint))
    entries.sort(key=lambda entry: entry[:2])
    seq = max((number for _, number, _ in entries), default=0)
    return Listing([checkpoint for _, _, checkpoint in entries], unreadable, seq), gone


def _read_one(path: Path) -> Entry:
    if not os.path.isdir(path):
        if os.path.lexists(path):  # a file of this name is foreign
            raise _NotACheckpointError
        raise CheckpointGoneError("it does not exist")
    if not looks_like_checkpoint(path) or is_unfinished(path):
        raise _NotACheckpointError
    with open_checkpoint(path) as opened:
        return Entry(opened.checkpoint, 0 if opened.manifest is None else opened.manifest.seq)
