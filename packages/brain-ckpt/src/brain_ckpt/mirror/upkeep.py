"""What to keep in a mirror, and the deletion of the rest."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from brain_ckpt.mirror.deletion import delete_entry, sweep
from brain_ckpt.retention.checkpoint import ckpt_recency
from brain_ckpt.retention.policies import newest_first
from brain_ckpt.retention.selection import choose_deletions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from brain_ckpt.mirror.listing import MirrorLister, MirrorListing
    from brain_ckpt.mirror.objects import ObjectStore
    from brain_ckpt.retention.checkpoint import Checkpoint
    from brain_ckpt.retention.policies import Policy
    from brain_ckpt.retention.selection import Retention

logger = logging.getLogger(__name__)

_SWEEP_EVERY_S = 6 * 3600.0
_MAX_RETENTIONS = 64


@dataclass
class Rules:
    """What to keep in a mirror.

    Parameters
    ----------
    keep : Policy or None
        What to keep besides the newest; None follows the retention of the saves.
    also_keep : callable
        Returns the policy of the checkpointer, or None.
    """

    keep: Policy | None
    also_keep: Callable[[], Policy | None]


class Upkeep:
    """Deletes from a mirror what the rules do not keep.

    Parameters
    ----------
    store : ObjectStore
        The mirror.
    root : Path
        The directory of the checkpoints on disk.
    lister : MirrorLister
        Lists the mirror.
    rules : Rules
        What to keep.
    """

    def __init__(self, store: ObjectStore, root: Path, lister: MirrorLister, rules: Rules) -> None:
        self.has_uploaded = False
        self._store = store
        self._root = root
        self._lister = lister
        self._rules = rules
        self._retentions: list[tuple[float, Retention]] = []
        self._swept_s = float("-inf")

    def add(self, retention: Retention, newest_s: float) -> None:
        """Apply a retention once the mirror has a checkpoint of a time, or a newer one."""
        self._retentions = [*self._retentions, (newest_s, retention)][-_MAX_RETENTIONS:]

    def policies(self) -> list[Policy]:
        """Return what is kept now."""
        if self._rules.keep is not None:
            return [self._rules.keep]
        also_keep = self._rules.also_keep()
        return [
            *(retention.policy() for _, retention in self._retentions[-1:]),
            *([] if also_keep is None else [also_keep]),
        ]

    def superfluous(
        self, waiting: Sequence[Checkpoint], mirrored: Sequence[Checkpoint]
    ) -> list[Checkpoint]:
        """Return the checkpoints that wait for their upload and would be deleted after it."""
        commits = {one.commit_id for one in waiting}
        known = [one for one in mirrored if one.commit_id not in commits]
        everything = newest_first([*known, *waiting])[::-1]
        chosen = self._choose(everything, [retention for _, retention in self._retentions])
        return [one for one in chosen if one.commit_id in commits]

    def apply(
        self, mirrored: Sequence[Checkpoint], check_stop: Callable[[], object]
    ) -> list[Checkpoint] | None:
        """Delete what the rules do not keep, and what was never completed.

        Parameters
        ----------
        mirrored : sequence of Checkpoint
            What the mirror is known to hold.
        check_stop : callable
            Called between deletions; raises to end.

        Returns
        -------
        list of Checkpoint or None
            What the mirror holds now; None if there was nothing to do.
        """
        newest_s = max(map(ckpt_recency, mirrored), default=float("-inf"))
        due = [one for one in self._retentions if one[0] <= newest_s]
        if not (due or self.has_uploaded):
            return None  # the mirror can be that of a run elsewhere, which this process only reads
        listing = self._lister.list(_once)
        checkpoints = listing.checkpoints(self._root)
        chosen = self._choose(checkpoints, [retention for _, retention in due])
        by_commit = listing.by_commit()
        for entry in [*listing.replaced, *(by_commit[one.commit_id or ""] for one in chosen)]:
            check_stop()
            delete_entry(self._store, entry)
            logger.info("Deleted checkpoint %s from %s", entry.name, self._store.shown)
        if time.monotonic() - self._swept_s >= _SWEEP_EVERY_S:
            sweep(self._store, listing)
            self._swept_s = time.monotonic()
        self._retentions = [one for one in self._retentions if one not in due]
        self.has_uploaded = False
        deleted = {one.path for one in chosen}
        return [one for one in checkpoints if one.path not in deleted]

    def _choose(
        self, checkpoints: list[Checkpoint], retentions: Sequence[Retention]
    ) -> list[Checkpoint]:
        """Return what the rules do not keep; the newest one is always kept."""
        kept, keep = list(checkpoints), self._rules.keep
        if keep is not None:
            kept = [one for one, keeps in zip(kept, keep(kept), strict=True) if keeps]
        else:
            for retention in retentions:
                chosen = choose_deletions(kept, retention, self._rules.also_keep())
                paths = {one.path for one in chosen}
                kept = [one for one in kept if one.path not in paths]
        paths = {one.path for one in kept}
        return [one for one in checkpoints[:-1] if one.path not in paths]


def _once(request: Callable[[], MirrorListing]) -> MirrorListing:
    return request()
