"""Delete checkpoints from a mirror, and sweep what interrupted uploads and deletions left."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from brain_ckpt.mirror.entry import COMMITS, PARTS, commit_key, commit_of, parts_prefix

if TYPE_CHECKING:
    from brain_ckpt.mirror.entry import Entry
    from brain_ckpt.mirror.listing import MirrorListing
    from brain_ckpt.mirror.objects import ObjectInfo, ObjectStore

logger = logging.getLogger(__name__)

# An upload that is under way adds a part more often.
SWEEP_AGE_S = 24 * 3600.0


def delete_entry(store: ObjectStore, entry: Entry) -> None:
    """Delete a checkpoint: its manifest becomes empty, then its parts are deleted.

    The empty object keeps the number taken; see `brain_ckpt.mirror.publish`.
    """
    store.replace(commit_key(entry.number), b"")
    store.delete([one.key for one in store.list(parts_prefix(entry.commit_id))])


def sweep(store: ObjectStore, listing: MirrorListing, age_s: float = SWEEP_AGE_S) -> list[str]:
    """Delete the parts of checkpoints that have no manifest, if the newest part is old.

    Nothing is deleted while a manifest is unreadable, because its parts are not known.

    Parameters
    ----------
    store : ObjectStore
        The mirror.
    listing : MirrorListing
        Its checkpoints, listed before this call.
    age_s : float
        How much older than the newest object in the mirror the parts must be, in seconds.  The
        clock of the store counts, not that of this machine.

    Returns
    -------
    list of str
        The commit ids of the checkpoints whose parts were deleted.
    """
    if listing.unreadable:
        return []
    commits = {one.commit_id for one in (*listing.entries, *listing.replaced)}
    parts: dict[str, list[ObjectInfo]] = {}
    for one in store.list(PARTS):
        parts.setdefault(commit_of(one.key), []).append(one)
    written = [one.modified_s for one in store.list(COMMITS)]
    newest_of = {commit: max(one.modified_s for one in found) for commit, found in parts.items()}
    now_s = max((*written, *newest_of.values()), default=0.0)
    swept = []
    for commit, found in parts.items():
        if commit not in commits and now_s - newest_of[commit] >= age_s:
            store.delete([one.key for one in found])
            swept.append(commit)
            logger.info("Deleted %d parts of an unfinished upload from %s", len(found), store.shown)
    return swept
