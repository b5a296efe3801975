"""What was read of checkpoints before, used again while their files are the same.

Reading the manifest and the meta of a checkpoint takes a hundred times as long as asking the file
system whether they are still the files that were read.  The directory, the manifest and the meta
must each have the same inode, size and times, before and after they were read and at each later
use.  A file that is written within the resolution of these times after it was read could go
unnoticed, so what changed only a moment before it was read is read again.
"""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING, NamedTuple

from brain_ckpt.retention.checkpoint import Checkpoint
from brain_ckpt.storage import filesystem
from brain_ckpt.storage.layout import META_NAME
from brain_ckpt.storage.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from brain_ckpt.storage.filesystem import Identity

# Kernels advance the times of files every 1 to 10 ms; some file systems keep 1 or 2 s.
_SETTLED_NS = 100_000_000
_SETTLED_COARSE_NS = 3_000_000_000
_COARSE_NS = 1_000_000


class Entry(NamedTuple):
    """A listed checkpoint, and the number of its save; 0 if SpeechBrain wrote it."""

    checkpoint: Checkpoint
    seq: int


class _Known(NamedTuple):
    identities: tuple[Identity, ...]
    entry: Entry


class KnownCheckpoints:
    """The checkpoints of one directory that were read before."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def get(self, path: Path, read: Callable[[], Entry]) -> Entry:
        """Return a checkpoint as it was read before, or read it.

        Parameters
        ----------
        path : Path
            Its directory.
        read : callable
            Reads it.
        """
        where = str(path)
        before = _identities(where)
        known = self._known.get(where)
        if known is not None and known.identities == before:
            return _copied(known.entry)
        now = time.time_ns()
        entry = read()
        if before is not None and _is_settled(before, now) and _identities(where) == before:
            self._known[where] = _Known(before, _copied(entry))
        else:
            self._known.pop(where, None)
        return entry

    def keep_only(self, paths: Collection[Path]) -> None:
        """Forget all checkpoints but those of these directories."""
        kept = set(map(str, paths))
        for where in list(self._known):
            if where not in kept:
                self._known.pop(where, None)


def _identities(where: str) -> tuple[Identity, ...] | None:
    """Return the identities of a directory, its manifest and its meta; None if one is missing."""
    found = []
    for path in (where, f"{where}/{MANIFEST_NAME}", f"{where}/{META_NAME}"):
        identity = filesystem.identity(path)
        if identity is None:
            return None
        found.append(identity)
    return tuple(found)


def _is_settled(identities: tuple[Identity, ...], now_ns: int) -> bool:
    times = [time_ns for one in identities for time_ns in (one.mtime_ns, one.ctime_ns)]
    is_coarse = all(time_ns % _COARSE_NS == 0 for time_ns in times)
    return max(times) < now_ns - (_SETTLED_COARSE_NS if is_coarse else _SETTLED_NS)


def _copied(entry: Entry) -> Entry:
    """Return a copy whose meta and files the caller may change."""
    listed = entry.checkpoint
    meta = {
        key: value if isinstance(value, (int, float, str)) else copy.deepcopy(value)
        for key, value in listed.meta.items()
    }
    copied = Checkpoint(
        listed.path,
        meta,
        dict(listed.paramfiles),
        commit_id=listed.commit_id,
        size_bytes=listed.size_bytes,
    )
    return Entry(copied, entry.seq)
