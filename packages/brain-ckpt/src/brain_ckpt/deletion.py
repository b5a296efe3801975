"""Who deletes checkpoints: what is not to be kept, and never the last that is intact."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from brain_ckpt.errors import CheckpointDeleteError, CheckpointError
from brain_ckpt.ranks.agreement import decide
from brain_ckpt.retention.policies import Checkpoint, Policy, newest_first
from brain_ckpt.retention.selection import Retention, choose_doomed
from brain_ckpt.storage.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

    from brain_ckpt.loading.reader import Reader
    from brain_ckpt.saving.writer import Writer

logger = logging.getLogger(__name__)


def check_spare(spare: object) -> None:
    """Check how many intact checkpoints are to be kept beyond those that are asked for."""
    if isinstance(spare, bool) or not isinstance(spare, int) or spare < 0:
        raise ValueError(f"spare is a number of checkpoints, 0 or more, got {spare!r}; use 1")


class Deleter:
    """Deletes from one directory.

    Parameters
    ----------
    writer : Writer
        Who writes there.
    reader : Reader
        Who lists it.
    """

    def __init__(self, writer: Writer, reader: Reader) -> None:
        self._writer = writer
        self._reader = reader
        self._root = writer.store.root
        self._intact: set[Path] = set()

    def trust(self, checkpoint: Checkpoint) -> None:
        """Count a checkpoint that was just written as intact, unread."""
        self._intact.add(checkpoint.path)

    def delete(self, retention: Retention, keep: Policy | None, spare: int, verbosity: int) -> None:
        """Delete what is not to be kept; every rank calls it.

        Parameters
        ----------
        retention : Retention
            What to keep.
        keep : Policy, optional
            What to keep as well.
        spare : int
            How many intact ones to keep beyond that.
        verbosity : int
            The level to log at.

        Raises
        ------
        CheckpointDeleteError
            If one could not be deleted.
        """
        nodes = self._writer.nodes()
        if nodes.shared:
            nodes.on_leaders(lambda: self._delete(self._doomed(retention, keep, spare), verbosity))
        else:
            names = decide(lambda: self._doomed(retention, keep, spare))
            nodes.on_leaders(lambda: self._delete(names, verbosity))

    def retain(self, retention: Retention, keep: Policy | None, spare: int, verbosity: int) -> None:
        """As `delete`, after a save, whose success does not depend on it: a failure is logged."""
        try:
            self.delete(retention, keep, spare, verbosity)
        except CheckpointDeleteError:
            logger.exception("checkpoints that should have gone are still there")

    def _doomed(self, retention: Retention, keep: Policy | None, spare: int) -> list[str]:
        doomed = choose_doomed(self._reader.listing().checkpoints, retention, keep)
        spares: list[Checkpoint] = []
        for one in newest_first(doomed):
            if len(spares) < spare and self._is_intact(one):
                spares.append(one)
        return [one.path.name for one in doomed if one not in spares]

    def _delete(self, names: list[str], verbosity: int) -> None:
        paths = [path for name in names if (path := self._root / name).is_dir()]
        if not paths:
            return
        try:
            self._writer.lock()
            self._writer.store.delete(paths)
        except OSError as error:
            raise CheckpointDeleteError(
                f"checkpoints in {self._root} could not be deleted: {error}; the next save tries "
                f"again"
            ) from error
        for path in paths:
            self._intact.discard(path)
            logger.log(verbosity, "deleted %s", path)

    def _is_intact(self, checkpoint: Checkpoint) -> bool:
        if checkpoint.path not in self._intact:
            try:
                verify(checkpoint)
            except (CheckpointError, OSError):
                return False
            self._intact.add(checkpoint.path)
        return True
