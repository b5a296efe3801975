"""The checkpointer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_ckpt.deletion import Deleter, check_spare
from brain_ckpt.loading.reader import Reader, Wanted
from brain_ckpt.ranks.agreement import together
from brain_ckpt.recoverables.registry import Only, Recoverables
from brain_ckpt.retention.policies import Checkpoint, Key, Policy, ckpt_recency
from brain_ckpt.retention.selection import Predicate, Retention
from brain_ckpt.saving.plan import Request
from brain_ckpt.saving.writer import Writer, make_directory
from brain_ckpt.storage.checksum import check_checksum
from brain_ckpt.storage.layout import check_name
from brain_ckpt.storage.meta import plain_meta
from brain_dist import get_rank

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from brain_ckpt.recoverables.hooks import HookRegistry
    from brain_ckpt.saving.files import Item
    from brain_ckpt.storage.checksum import Algorithm


class Checkpointer(Recoverables):
    """Saves checkpoints that nothing can break, and recovers from them.

    Parameters
    ----------
    checkpoints_dir : str or Path
        Where; it is made if it is not there.
    recoverables : mapping of str to object, optional
        What to save, by name.  Anything with `state_dict` and `load_state_dict`, with marked
        methods, or a dataclass.
    custom_load_hooks : mapping of str to callable, optional
        ``hook(obj, path, end_of_epoch)``, or without the flag, by name.
    custom_save_hooks : mapping of str to callable, optional
        ``hook(obj, path)``, by name.
    allow_partial_load : bool
        Whether a recoverable that a checkpoint does not hold is left as it is.
    asynchronous : bool
        True copies the state and writes it while training goes on; `poll` it at each step.
    spare : int
        How many intact checkpoints to keep beyond those that are asked for.
    keep : Policy, optional
        What never to delete, such as ``KeepEvery(DAY_S)``.
    checksum : str
        "crc32" or "sha256".
    hooks : HookRegistry, optional
        Hooks by type.
    atomic_rename : bool
        Whether the file system renames a directory in one step.  False for one that does not (an
        object store that is mounted): none is renamed then, and a checkpoint counts from when
        its manifest, written last, is there.

    Examples
    --------
    >>> import tempfile, torch
    >>> model = torch.nn.Linear(2, 1)
    >>> checkpointer = Checkpointer(tempfile.mkdtemp(), {"model": model})
    >>> checkpointer.recover_if_possible()
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
        atomic_rename: bool = True,
    ) -> None:
        check_checksum(checksum)
        check_spare(spare)
        super().__init__(custom_load_hooks, custom_save_hooks, hooks)
        self.allow_partial_load = allow_partial_load
        self.asynchronous = asynchronous
        self.spare = spare
        self.keep = keep
        self._checksum = checksum
        self._atomic_rename = atomic_rename
        self._writer: Writer
        self.checkpoints_dir = checkpoints_dir
        if recoverables is not None:
            self.add_recoverables(recoverables)

    @property
    def checkpoints_dir(self) -> Path:
        """Where checkpoints are; assigning another one closes this one first."""
        return self._writer.store.root

    @checkpoints_dir.setter
    def checkpoints_dir(self, directory: str | Path) -> None:
        path = Path(directory)
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(
                f"checkpoints_dir is a directory, got {str(path)!r}, which is a file; name another"
            )
        if hasattr(self, "_writer"):
            self._writer.close()
        make_directory(path)
        self._writer = Writer(path, self._checksum, renames=self._atomic_rename)
        self._reader = Reader(self._writer)
        self._deleter = Deleter(self._writer, self._reader)

    @property
    def passed_over(self) -> list[str]:
        """What was damaged in checkpoints that the last recovery had to leave out, each by file."""
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
            Whether the epoch is complete; told to every loader.
        name : str, optional
            A name; a checkpoint that has it is replaced.  By default made from the time.
        verbosity : int
            The level to log at.

        Returns
        -------
        Checkpoint or None
            It is on the disk, unless saves are asynchronous.  None on ranks other than the first.

        Raises
        ------
        CheckpointSaveError
            If it was not saved; the same on every rank.  What was there before is untouched.
        CheckpointLockedError
            If another process writes to this directory.
        TypeError, ValueError
            If meta or a name cannot be used; nothing was written.
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
        """Save a checkpoint; once it is on the disk, delete the least important others.

        Parameters
        ----------
        meta, end_of_epoch, name, verbosity
            As in `save_checkpoint`.
        num_to_keep : int
            How many to keep by each key.
        keep_recent : bool
            Whether the newest are kept, beside those kept by a key.
        importance_keys : sequence of callable
            Each takes a checkpoint; those with the highest values are kept.
        max_keys, min_keys : sequence of str
            Names in meta; those with the highest, or lowest, values are kept.
        ckpt_predicate : callable, optional
            Only checkpoints that it is true of may be deleted.

        Raises
        ------
        CheckpointSaveError
            As in `save_checkpoint`.  A checkpoint that cannot be deleted is only logged: the next
            save tries again.
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
            lambda: self._deleter.retain(retention, self.keep, self.spare, verbosity),
        )

    def find_checkpoint(
        self,
        importance_key: Key | None = None,
        max_key: str | None = None,
        min_key: str | None = None,
        ckpt_predicate: Predicate | None = None,
    ) -> Checkpoint | None:
        """Return the best checkpoint, or None; the arguments are those of `find_checkpoints`."""
        found = self.find_checkpoints(importance_key, max_key, min_key, ckpt_predicate)
        return found[0] if found else None

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
            Only those that it is true of are returned.
        max_num_checkpoints : int, optional
            How many to return at most.

        Raises
        ------
        ValueError
            If more than one key is given.
        """
        wanted = Wanted(importance_key, max_key, min_key, ckpt_predicate)
        return wanted.best_first(self.list_checkpoints())[:max_num_checkpoints]

    def list_checkpoints(self) -> list[Checkpoint]:
        """Return all checkpoints, the oldest first; one that cannot be read is warned of."""
        return self._reader.listing().checkpoints

    def recover_if_possible(
        self,
        importance_key: Key | None = None,
        max_key: str | None = None,
        min_key: str | None = None,
        ckpt_predicate: Predicate | None = None,
        *,
        only: Only | None = None,
        trusted: bool = False,
    ) -> Checkpoint | None:
        """Load the best checkpoint, if there is one; every rank calls it and loads the same.

        Parameters
        ----------
        importance_key, max_key, min_key, ckpt_predicate
            As in `find_checkpoints`.  Without a key a damaged newest checkpoint is reported, and
            the next older one is loaded.
        only, trusted
            As in `load_checkpoint`.

        Returns
        -------
        Checkpoint or None
            What was loaded; None if there is none.

        Raises
        ------
        NoIntactCheckpointError
            If there are checkpoints, and none is intact.
        CheckpointDamagedError
            If the best by a key is damaged.
        CheckpointMismatchError
            If an intact checkpoint does not fit.
        """
        wanted = Wanted(importance_key, max_key, min_key, ckpt_predicate)
        return self._reader.recover(
            wanted, self._chosen(only), partial=self.allow_partial_load, trusted=trusted
        )

    def load_checkpoint(
        self, checkpoint: Checkpoint, *, only: Only | None = None, trusted: bool = False
    ) -> None:
        """Load a checkpoint; every rank calls it.

        Parameters
        ----------
        checkpoint : Checkpoint
            Which one.
        only : callable, optional
            ``only(name, obj)`` says whether to restore a recoverable; all of them by default.
        trusted : bool
            True unpickles whatever a file holds, which can run any code.

        Raises
        ------
        CheckpointDamagedError
            If a file is not what was written; no object was touched.
        CheckpointMismatchError
            If something is missing or does not fit.
        UnsafeCheckpointError
            If a file would run code.
        """
        self._writer.wait()
        self._reader.load(
            checkpoint, self._chosen(only), partial=self.allow_partial_load, trusted=trusted
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
        """Delete the least important checkpoints; every rank calls it, the first one deletes.

        Parameters
        ----------
        num_to_keep, min_keys, max_keys, importance_keys, ckpt_predicate, verbosity
            As in `save_and_keep_only`.

        Raises
        ------
        CheckpointDeleteError
            If one could not be deleted.
        CheckpointLockedError
            If another process writes to this directory.
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
        """Publish an asynchronous save that is written; for every rank, at each step's end.

        Raises
        ------
        CheckpointSaveError
            If it could not be written.
        """
        self._writer.poll()

    def close(self) -> None:
        """Wait for an asynchronous save, publish it, and give the directory's lock back.

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
        items: list[Item] = []

        def check() -> Request:
            items.extend(self._chosen())
            if name is not None:
                check_name(name, "the name of a checkpoint")
            return Request(plain_meta(meta or {}), bool(end_of_epoch), name, verbosity)

        request = together(check)[0]
        saved = self._writer.save(request, items, after, asynchronous=self.asynchronous)
        if get_rank() != 0:
            return None
        self._deleter.trust(saved)
        return saved
