"""Find and restore checkpoints: the public methods that read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain_ckpt.recoverables.registry import RecoverableRegistry
from brain_ckpt.retention.checkpoint import Checkpoint, Key, ckpt_recency
from brain_ckpt.retention.selection import CheckpointQuery, Predicate
from brain_dist import collective_call

if TYPE_CHECKING:
    from brain_ckpt.loading.reader import Reader
    from brain_ckpt.mirror.copies import Copies
    from brain_ckpt.recoverables.registry import RecoverableFilter
    from brain_ckpt.saving.writer import Writer


class CheckpointFinder(RecoverableRegistry):
    """The methods of a checkpointer that find and restore checkpoints, here and in its mirror."""

    allow_partial_load: bool
    _writer: Writer
    _reader: Reader
    _copies: Copies | None

    @property
    def passed_over(self) -> list[str]:
        """The damage in newer checkpoints that the last recovery passed over, with file names."""
        elsewhere = [] if self._copies is None else self._copies.passed_over
        return [*elsewhere, *self._reader.passed_over]

    def find_checkpoint(
        self,
        importance_key: Key | None = None,
        max_key: str | None = None,
        min_key: str | None = None,
        ckpt_predicate: Predicate | None = None,
    ) -> Checkpoint | None:
        """Return the best checkpoint, or None if there is none; see `find_checkpoints`."""
        best = self.find_checkpoints(importance_key, max_key, min_key, ckpt_predicate, 1)
        return best[0] if best else None

    def find_checkpoints(
        self,
        importance_key: Key | None = None,
        max_key: str | None = None,
        min_key: str | None = None,
        ckpt_predicate: Predicate | None = None,
        max_num_checkpoints: int | None = None,
    ) -> list[Checkpoint]:
        """Return checkpoints, the best first; those that only the mirror has are downloaded.

        Parameters
        ----------
        importance_key : callable, optional
            Takes a checkpoint; the highest value is the best.  By default the newest is the best.
        max_key, min_key : str, optional
            A name in meta; only checkpoints that have it are returned.  A NaN is never the best.
        ckpt_predicate : callable, optional
            Only checkpoints for which it is true are returned.
        max_num_checkpoints : int, optional
            The largest number to return.

        Raises
        ------
        ValueError
            If more than one key is given, or no checkpoint has the metric.
        """
        query = CheckpointQuery(importance_key, max_key, min_key, ckpt_predicate)
        if self._copies is not None:
            self._copies.fetch_here(query, max_num_checkpoints)
        return query.best_first(self._reader.listing().checkpoints)[:max_num_checkpoints]

    def list_checkpoints(self) -> list[Checkpoint]:
        """Return all checkpoints, the oldest first; log a warning for an unreadable one.

        Those that only the mirror has are among them: their meta can be read, and their files once
        `load_checkpoint` or `find_checkpoints` has downloaded them.
        """
        checkpoints = self._reader.listing().checkpoints
        if self._copies is not None:
            checkpoints += self._copies.only_there(checkpoints)
            checkpoints.sort(key=ckpt_recency)
        return checkpoints

    def recover_if_possible(
        self,
        importance_key: Key | None = None,
        max_key: str | None = None,
        min_key: str | None = None,
        ckpt_predicate: Predicate | None = None,
        *,
        only: RecoverableFilter | None = None,
        trusted: bool = False,
    ) -> Checkpoint | None:
        """Load the best checkpoint, if there is one; every rank calls it and loads the same one.

        Parameters
        ----------
        importance_key, max_key, min_key, ckpt_predicate
            As in `find_checkpoints`.  Without a key, if the newest checkpoint is damaged, the
            damage is logged and the next older one is loaded.
        only, trusted
            As in `load_checkpoint`.

        Returns
        -------
        Checkpoint or None
            The loaded checkpoint; None if there is none.

        Raises
        ------
        NoIntactCheckpointError
            If there are checkpoints, and none is intact.
        CheckpointDamagedError
            If the best by a key is damaged.
        CheckpointMismatchError
            If an intact checkpoint does not fit.
        """
        with collective_call("recover_if_possible"):
            self._writer.wait()
            query = CheckpointQuery(importance_key, max_key, min_key, ckpt_predicate)
            if self._copies is not None:
                self._copies.fetch(query)
                self._reader.repair = self._copies.repair
            return self._reader.recover(
                query, self._select(only), partial=self.allow_partial_load, trusted=trusted
            )

    def load_checkpoint(
        self,
        checkpoint: Checkpoint,
        *,
        only: RecoverableFilter | None = None,
        trusted: bool = False,
    ) -> None:
        """Load a checkpoint; every rank calls it.

        Parameters
        ----------
        checkpoint : Checkpoint
            The checkpoint.
        only : callable, optional
            ``only(name, obj)`` returns whether to restore a recoverable; by default all are.
        trusted : bool
            True unpickles any object, which runs the code that a file names.

        Raises
        ------
        CheckpointDamagedError
            If a file differs from what was written; no object is changed.
        CheckpointMismatchError
            If a file is missing or does not fit.
        UnsafeCheckpointError
            If a file names code to run.
        """
        with collective_call("load_checkpoint"):
            self._writer.wait()
            if self._copies is not None:
                self._copies.fetch_one(checkpoint)
            self._reader.load(
                checkpoint, self._select(only), partial=self.allow_partial_load, trusted=trusted
            )
