"""Delete checkpoints that no policy keeps."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from brain_ckpt.errors import CheckpointDeleteError, CheckpointError
from brain_ckpt.ranks.agreement import run_on_first_rank
from brain_ckpt.retention.policies import Policy, newest_first
from brain_ckpt.retention.selection import Retention, choose_deletions
from brain_ckpt.saving.space import free_space, size_of, warn_if_full
from brain_ckpt.storage.verify import verify
from brain_dist import get_rank

if TYPE_CHECKING:
    from pathlib import Path

    from brain_ckpt.loading.reader import Reader
    from brain_ckpt.ranks.shared_directory import SharedDirectory
    from brain_ckpt.retention.checkpoint import Checkpoint

logger = logging.getLogger(__name__)


def check_spare(spare: object) -> None:
    """Check the number of intact checkpoints to keep beyond those asked for."""
    if isinstance(spare, bool) or not isinstance(spare, int) or spare < 0:
        raise ValueError(f"spare must be a number of checkpoints, 0 or more, got {spare!r}; use 1")


class Deleter:
    """Deletes checkpoints from one directory.

    Parameters
    ----------
    directory : SharedDirectory
        The directory.
    reader : Reader
        Lists its checkpoints.
    """

    def __init__(self, directory: SharedDirectory, reader: Reader) -> None:
        self._directory = directory
        self._reader = reader
        self._intact: set[Path] = set()
        self._space_checked = False

    def mark_intact(self, checkpoint: Checkpoint) -> None:
        """Count a checkpoint that was just written as intact, without reading it."""
        self._intact.add(checkpoint.path)

    def delete(
        self, retention: Retention, also_keep: Policy | None, spare: int, verbosity: int
    ) -> None:
        """Delete the checkpoints that are not kept; every rank calls it.

        Parameters
        ----------
        retention : Retention
            What to keep.
        also_keep : Policy, optional
            What else to keep.
        spare : int
            How many intact checkpoints to keep beyond that.
        verbosity : int
            The level to log at.

        Raises
        ------
        CheckpointDeleteError
            If a checkpoint could not be deleted.
        """
        nodes = self._directory.nodes()

        def choose() -> list[str]:
            return self._choose(retention, also_keep, spare)

        if nodes.shared:
            nodes.run_on_leaders(lambda: self._delete(choose(), verbosity))
        else:
            names = run_on_first_rank(choose)
            nodes.run_on_leaders(lambda: self._delete(names, verbosity))

    def delete_after_save(
        self, retention: Retention, also_keep: Policy | None, spare: int, verbosity: int
    ) -> None:
        """Call `delete` and log its failure, because the save has succeeded."""
        try:
            self.delete(retention, also_keep, spare, verbosity)
        except CheckpointDeleteError:
            logger.exception("Old checkpoints could not be deleted")
        if not self._space_checked and get_rank() == 0:
            self._space_checked = True
            self._warn_of_space(retention, spare)

    def _warn_of_space(self, retention: Retention, spare: int) -> None:
        """Log a warning if the checkpoints that are kept will not fit, once they are all there."""
        checkpoints = self._reader.listing().checkpoints
        free_bytes = free_space(self._directory.root)
        if checkpoints and free_bytes is not None:
            size_bytes = size_of(checkpoints[-1])
            missing = retention.most_kept() + spare + 1 - len(checkpoints)
            warn_if_full(self._directory.root, size_bytes, missing, free_bytes)

    def _choose(self, retention: Retention, also_keep: Policy | None, spare: int) -> list[str]:
        candidates = choose_deletions(self._reader.listing().checkpoints, retention, also_keep)
        spares: list[Checkpoint] = []
        for one in newest_first(candidates):
            if len(spares) < spare and self._is_intact(one):
                spares.append(one)
        return [one.path.name for one in candidates if one not in spares]

    def _delete(self, names: list[str], verbosity: int) -> None:
        root = self._directory.root
        paths = [path for name in names if (path := root / name).is_dir()]
        if not paths:
            return
        try:
            self._directory.lock()
            self._directory.store.delete(paths)
        except OSError as error:
            raise CheckpointDeleteError(
                f"checkpoints in {root} could not be deleted: {error}; the next save tries again"
            ) from error
        for path in paths:
            self._intact.discard(path)
            logger.log(verbosity, "Deleted checkpoint %s", path)

    def _is_intact(self, checkpoint: Checkpoint) -> bool:
        if checkpoint.path not in self._intact:
            try:
                verify(checkpoint)
            except (CheckpointError, OSError):
                return False
            self._intact.add(checkpoint.path)
        return True
