"""One directory of checkpoints as all ranks see it: its store, its lock and its nodes."""

from __future__ import annotations

import logging
import time
import uuid
import weakref
from typing import TYPE_CHECKING

from brain_ckpt.errors import CheckpointLockedError
from brain_ckpt.ranks.nodes import Nodes, common_names, detect_nodes, roll_forward
from brain_ckpt.storage.lock import DirectoryLock, LastSave
from brain_ckpt.storage.store import Store
from brain_dist import get_world_size

if TYPE_CHECKING:
    from pathlib import Path

    from brain_ckpt.storage.checksum import Algorithm

logger = logging.getLogger(__name__)

_LOCK_TIMEOUT_S = 1.0


class SharedDirectory:
    """The directory that the ranks of one run save to and load from.

    Parameters
    ----------
    root : Path
        The directory.
    algorithm : str
        The checksum.
    renames : bool
        Whether the file system renames a directory atomically.
    """

    def __init__(self, root: Path, algorithm: Algorithm = "crc32", *, renames: bool = True) -> None:
        self.root = root
        self.store = Store(root, uuid.uuid4().hex[:12], algorithm, renames=renames)
        self._lock: DirectoryLock | None = None
        self._nodes: Nodes | None = None
        self._nodes_world_size = 0

    def lock(self) -> None:
        """Acquire the lock of the directory for the rest of this run.

        Raises
        ------
        CheckpointLockedError
            If another process holds it.
        """
        if self._lock is None:
            self._lock = DirectoryLock(self.root, self.store.run_id)
            weakref.finalize(self, self._lock.release)
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        # A reader that cleans up after an ended run holds it briefly.
        while (holder := self._lock.acquire()) is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        if holder is not None:
            raise CheckpointLockedError(
                f"only one run may write to {self.root}, got a second one while it is written "
                f"by {holder}: stop that run, or give this one its own directory"
            )

    def last_save(self) -> LastSave:
        """Return the last save to this directory; the lock is held."""
        assert self._lock is not None
        return self._lock.last_save()

    def note_save(self, save: LastSave) -> None:
        """Note a save before its name is used; the lock is held."""
        assert self._lock is not None
        self._lock.note_save(save)

    def unlock(self) -> None:
        """Release the lock, if this run holds it."""
        if self._lock is not None:
            self._lock.release()
            self.store.forget()

    def nodes(self) -> Nodes:
        """Return the role of this rank; all ranks make the first call together."""
        if self._nodes is None or self._nodes_world_size != get_world_size():
            self._nodes, self._nodes_world_size = detect_nodes(self.root), get_world_size()
        return self._nodes

    def reconcile_nodes(self) -> None:
        """Bring nodes without a shared file system to the same checkpoints; every rank calls it."""
        if not self.nodes().shared:
            roll_forward(self.nodes(), self.store, self.lock)

    def common_names(self) -> set[str] | None:
        """Return the checkpoints that every node has; None if there is one directory for all."""
        return None if self.nodes().shared else common_names(self.nodes(), self.store)

    def clean_up_if_unlocked(self) -> None:
        """Clean up after ended runs, unless another run is alive in this directory."""
        if not self.store.has_leftovers():
            return
        try:
            lock = DirectoryLock(self.root, self.store.run_id)
            if lock.acquire() is None:
                try:
                    self.store.clean_up()
                finally:
                    lock.release()
        except OSError as error:
            logger.info("Skipped the cleanup of %s: %s", self.root, error)
