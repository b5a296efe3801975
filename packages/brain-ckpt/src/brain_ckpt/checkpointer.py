"""The checkpointer: the public methods, in terms of a writer, a reader and a deleter."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from brain_ckpt.deletion import Deleter, check_spare
from brain_ckpt.loading.reader import Reader
from brain_ckpt.ranks.agreement import gather_results
from brain_ckpt.ranks.shared_directory import SharedDirectory
from brain_ckpt.recoverables.registry import RecoverableRegistry
from brain_ckpt.retention.checkpoint import Checkpoint, Key, ckpt_recency
from brain_ckpt.retention.selection import CheckpointQuery, Predicate, Retention
from brain_ckpt.saving.plan import SaveRequest, make_request
from brain_ckpt.saving.writer import Writer
from brain_ckpt.storage.checksum import check_checksum
from brain_ckpt.storage.filesystem import make_directories
from brain_ckpt.storage.layout import check_directory
from brain_dist import get_rank

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from brain_ckpt.recoverables.hooks import HookRegistry
    from brain_ckpt.recoverables.registry import Recoverable, RecoverableFilter
    from brain_ckpt.recoverables.safe_globals import SafeGlobal
    from brain_ckpt.retention.policies import Policy
    from brain_ckpt.storage.checksum import Algorithm


class Checkpointer(RecoverableRegistry):
    """Saves crash-safe checkpoints and restores objects from them.

    Parameters
    ----------
    checkpoints_dir : str or Path
        The directory; it is made if it does not exist.
    recoverables : mapping of str to object, optional
        The objects to save, by name: anything with `state_dict` and `load_state_dict` or with
        marked methods, and dataclasses.
    custom_load_hooks, custom_save_hooks : mapping of str to callable, optional
        ``hook(obj, path, end_of_epoch)``, or without the flag, and ``hook(obj, path)``, by name.
    allow_partial_load : bool
        Whether recoverables that a checkpoint does not hold keep their state.
    asynchronous : bool
        True copies the state and writes it during training; call `poll` after each step.
    spare : int
        How many intact checkpoints to keep beyond those asked for.
    keep : Policy, optional
        What never to delete, such as ``KeepEvery(DAY_S)``.
    checksum : str
        "crc32" or "sha256".
    hooks : HookRegistry, optional
        Hooks by type.
    safe_globals : iterable of type or callable
        Your classes whose objects states can hold, besides those that are registered with
        ``torch.serialization.add_safe_globals``.
    atomic_rename : bool
        Whether the file system renames a directory atomically.  Pass False for a mounted object
        store: a checkpoint then exists once its manifest, written last, is complete.

    Examples
    --------
    >>> import tempfile, torch
    >>> model = torch.nn.Linear(2, 1)
    >>> checkpointer = Checkpointer(tempfile.mkdtemp(), {"model": model})
    >>> checkpointer.save_and_keep_only(meta={"loss": 0.5}, min_keys=["loss"])
    >>> checkpointer.recover_if_possible(min_key="loss").meta["loss"]
    0.5
    """

    def __init__(
        self,
        checkpoints_dir: str | Path,
        recoverables: Mapping[str, Any] | None = None,
        custom_load_hooks: Mapping[str, Callable[..., Any]] | None = None,
        custom_save_hooks: Mapping[str, Callable[..., Any]] | None = None,
        allow_partial_load: bool = False,
        *,
        asynchronous: bool = False,
        spare: int = 0,
        keep: Policy | None = None,
        checksum: Algorithm = "crc32",
        hooks: HookRegistry | None = None,
        safe_globals: Iterable[SafeGlobal] = (),
        atomic_rename: bool = True,
    ) -> None:
        check_checksum(checksum)
        check_spare(spare)
        super().__init__(custom_load_hooks, custom_save_hooks, hooks, safe_globals)
        self.allow_partial_load = allow_partial_load
        self.asynchronous = asynchronous
        self.spare = spare
        self.keep = keep
        self._checksum = checksum
        self._atomic_rename = atomic_rename
        self._writer: Writer
        self.checkpoints_dir = checkpoints_dir
        self.add_recoverables({} if recoverables is None else recoverables)

    @property
    def checkpoints_dir(self) -> Path:
        """The directory of checkpoints; assigning another one closes the current one first."""
        return self._directory.root

    @checkpoints_dir.setter
    def checkpoints_dir(self, directory: str | Path) -> None:
        path = check_directory(directory)
        if hasattr(self, "_writer"):
            self._writer.close()
        make_directories(path)
        self._directory = SharedDirectory(path, self._checksum, renames=self._atomic_rename)
        self._writer = Writer(self._directory)
        self._reader = Reader(self._directory)
        self._deleter = Deleter(self._directory, self._reader)

    @property
    def passed_over(self) -> list[str]:
        """The damage in newer checkpoints that the last recovery passed over, with file names."""
        return self._reader.passed_over

    def save_checkpoint(
        self,
        meta: Mapping[str, Any] | None = None,
        end_of_epoch: bool = True,
        name: str | None = None,
        verbosity: int = logging.INFO,
    ) -> Checkpoint | None:
        """Save a checkpoint; every rank calls it.

        Parameters
        ----------
        meta : mapping, optional
            Plain values to find the checkpoint by, such as a loss.
        end_of_epoch : bool
            Whether the epoch is complete; passed to every loader.
        name : str, optional
            The name; a checkpoint of the same name is replaced.  By default made from the time.
        verbosity : int
            The level to log at.

        Returns
        -------
        Checkpoint or None
            It is durable unless saves are asynchronous.  None on ranks other than the first.

        Raises
        ------
        CheckpointSaveError
            If it was not saved, also because a state could not be restored; on every rank.
        CheckpointLockedError
            If another process writes to the directory.
        TypeError, ValueError
            If meta or a name is not valid; nothing is written.
        """
        return self._save(meta, end_of_epoch, name, verbosity, lambda: None)

    def save_and_keep_only(
        self,
        meta: Mapping[str, Any] | None = None,
        end_of_epoch: bool = True,
        name: str | None = None,
        num_to_keep: int = 1,
        keep_recent: bool = True,
        importance_keys: Sequence[Key] = (),
        max_keys: Sequence[str] = (),
        min_keys: Sequence[str] = (),
        ckpt_predicate: Predicate | None = None,
        verbosity: int = logging.INFO,
    ) -> None:
        """Save a checkpoint, then delete the least important others.

        Parameters
        ----------
        meta, end_of_epoch, name, verbosity
            As in `save_checkpoint`.
        num_to_keep : int
            How many to keep for each key.
        keep_recent : bool
            Whether to keep the newest ones, besides those kept for a key.
        importance_keys : sequence of callable
            Each takes a checkpoint; those with the highest values are kept.
        max_keys, min_keys : sequence of str
            Names in meta; those with the highest, or lowest, values are kept.
        ckpt_predicate : callable, optional
            Only checkpoints for which it is true may be deleted.

        Raises
        ------
        CheckpointSaveError
            As in `save_checkpoint`.  A failed deletion is logged, and the next save tries again.
        """
        retention = Retention(
            num_to_keep=num_to_keep,
            min_keys=min_keys or (),
            max_keys=max_keys or (),
            importance_keys=(*importance_keys, *((ckpt_recency,) if keep_recent else ())),
            ckpt_predicate=ckpt_predicate,
        )

        self._save(
            meta,
            end_of_epoch,
            name,
            verbosity,
            lambda: self._deleter.delete_after_save(retention, self.keep, self.spare, verbosity),
        )

    def find_checkpoint(
        self,
        importance_key: Key | None = None,
        max_key: str | None = None,
        min_key: str | None = None,
        ckpt_predicate: Predicate | None = None,
    ) -> Checkpoint | None:
        """Return the best checkpoint, or None; the arguments are those of `find_checkpoints`."""
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
        """Return checkpoints, the best first.

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
            If more than one key is given.
        """
        query = CheckpointQuery(importance_key, max_key, min_key, ckpt_predicate)
        return query.best_first(self.list_checkpoints())[:max_num_checkpoints]

    def list_checkpoints(self) -> list[Checkpoint]:
        """Return all checkpoints, the oldest first; log a warning for an unreadable one."""
        return self._reader.listing().checkpoints

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
        self._writer.wait()
        query = CheckpointQuery(importance_key, max_key, min_key, ckpt_predicate)
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
        self._writer.wait()
        self._reader.load(
            checkpoint, self._select(only), partial=self.allow_partial_load, trusted=trusted
        )

    def delete_checkpoints(
        self,
        *,
        num_to_keep: int = 1,
        min_keys: Sequence[str] | None = None,
        max_keys: Sequence[str] | None = None,
        importance_keys: Sequence[Key] = (ckpt_recency,),
        ckpt_predicate: Predicate | None = None,
        verbosity: int = logging.INFO,
    ) -> None:
        """Delete the least important checkpoints; every rank calls it, the first rank deletes.

        Parameters
        ----------
        num_to_keep, min_keys, max_keys, importance_keys, ckpt_predicate, verbosity
            As in `save_and_keep_only`.

        Raises
        ------
        CheckpointDeleteError
            If a checkpoint could not be deleted.
        CheckpointLockedError
            If another process writes to the directory.
        """
        retention = Retention(
            num_to_keep=num_to_keep,
            min_keys=min_keys or (),
            max_keys=max_keys or (),
            importance_keys=importance_keys,
            ckpt_predicate=ckpt_predicate,
        )
        self._writer.wait()
        self._deleter.delete(retention, self.keep, self.spare, verbosity)

    def poll(self) -> None:
        """Publish an asynchronous save that is written; every rank calls it after each step.

        Raises
        ------
        CheckpointSaveError
            If it could not be written.
        """
        self._writer.poll()

    def close(self) -> None:
        """Wait for an asynchronous save, publish it and release the lock of the directory.

        Raises
        ------
        CheckpointSaveError
            If it could not be written.
        """
        self._writer.close()

    def _save(
        self,
        meta: Mapping[str, Any] | None,
        end_of_epoch: bool,
        name: str | None,
        verbosity: int,
        after: Callable[[], None],
    ) -> Checkpoint | None:
        recoverables: list[Recoverable] = []

        def check() -> SaveRequest:
            recoverables.extend(self._select())
            return make_request(meta, end_of_epoch=end_of_epoch, name=name, verbosity=verbosity)

        request = gather_results(check)[0]
        saved = self._writer.save(request, recoverables, after, asynchronous=self.asynchronous)
        if get_rank() != 0:
            return None
        self._deleter.mark_intact(saved)
        return saved
