"""List the checkpoints in a mirror; needs no lock and changes nothing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from brain_ckpt.errors import CheckpointError, CheckpointMirrorError
from brain_ckpt.mirror.entry import COMMITS, Entry, load_entry, number_of
from brain_ckpt.mirror.objects import MissingObjectError
from brain_ckpt.mirror.retries import retry
from brain_ckpt.retention.checkpoint import ckpt_recency

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from brain_ckpt.mirror.objects import ObjectStore
    from brain_ckpt.retention.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

_READS = 3  # an answer can be damaged on its way


class MirrorListing(NamedTuple):
    """The checkpoints in a mirror.

    Parameters
    ----------
    entries : list of Entry
        In the order of their publication; of equal names only the last.
    replaced : list of Entry
        Those that a later one of the same name replaces.
    unreadable : dict of str to str
        The keys of manifests that cannot be read, with the reason.
    last_number : int
        The number of the last publication; 0 if there is none.
    """

    entries: list[Entry]
    replaced: list[Entry]
    unreadable: dict[str, str]
    last_number: int

    def checkpoints(self, root: Path) -> list[Checkpoint]:
        """Return the entries as checkpoints in a directory, from the oldest to the newest."""
        found = [(one.checkpoint(root), one.manifest.seq) for one in self.entries]
        found.sort(key=lambda pair: (ckpt_recency(pair[0]), pair[1]))
        return [checkpoint for checkpoint, _ in found]

    def by_commit(self) -> dict[str, Entry]:
        """Return the entries by commit id."""
        return {one.commit_id: one for one in self.entries}


class MirrorLister:
    """Lists a mirror; manifests that were read before are not read again.

    Parameters
    ----------
    store : ObjectStore
        The mirror.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._known: dict[tuple[str, int, str], Entry | str] = {}

    def list(self, repeat: Callable[..., MirrorListing] = retry) -> MirrorListing:
        """List the mirror.

        Parameters
        ----------
        repeat : callable
            Calls a function, again after failures that can pass.

        Raises
        ------
        CheckpointMirrorError
            If the mirror cannot be read.
        """
        return repeat(self._list)

    def _list(self) -> MirrorListing:
        known: dict[tuple[str, int, str], Entry | str] = {}
        last_number = 0
        for one in self._store.list(COMMITS):
            number = number_of(one.key)
            if number is None:
                continue
            last_number = max(last_number, number)
            version = (one.key, one.size, one.etag)
            if one.size and (found := self._known.get(version) or self._read(one.key)):
                known[version] = found
        self._known = known
        unreadable = {key: found for (key, *_), found in known.items() if isinstance(found, str)}
        current: dict[str, Entry] = {}
        replaced = []
        for found in known.values():
            if isinstance(found, Entry):
                if found.name in current:
                    replaced.append(current[found.name])
                current[found.name] = found
        entries = sorted(current.values(), key=lambda entry: entry.number)
        return MirrorListing(entries, replaced, unreadable, last_number)

    def _read(self, key: str) -> Entry | str | None:
        """Return a manifest, or why it cannot be used; None if it was deleted meanwhile."""
        where = f"{self._store.shown}/{key}"
        problem = ""
        for _ in range(_READS):
            try:
                content = self._store.read(key)
                entry = load_entry(content, where) if content else None
            except MissingObjectError:
                return None
            except CheckpointMirrorError:
                raise
            except CheckpointError as error:
                problem = str(error)
                continue
            if entry is None or entry.number == number_of(key):
                return entry
            problem = f"{where} must be publication {number_of(key)}, got {entry.number}"
        logger.warning("Skipped %s: %s", where, problem)
        return problem
