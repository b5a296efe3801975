"""The checkpointer: the public methods, in terms of a writer, a reader and a deleter."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from brain_ckpt.deletion import Deleter, check_spare
from brain_ckpt.finder import CheckpointFinder
from brain_ckpt.loading.reader import Reader
from brain_ckpt.ranks.agreement import collective_result
from brain_ckpt.ranks.shared_directory import SharedDirectory
from brain_ckpt.retention.checkpoint import Checkpoint, Key, ckpt_recency
from brain_ckpt.retention.selection import Predicate, Retention
from brain_ckpt.saving.plan import SaveRequest, make_request
from brain_ckpt.saving.writer import Writer
from brain_ckpt.storage.checksum import check_checksum
from brain_ckpt.storage.filesystem import make_directories
from brain_ckpt.storage.layout import check_directory
from brain_dist import collective_call, get_rank

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from brain_ckpt.recoverables.hooks import HookRegistry
    from brain_ckpt.recoverables.registry import Recoverable
    from brain_ckpt.recoverables.safe_globals import SafeGlobal
    from brain_ckpt.retention.policies import Policy
    from brain_ckpt.storage.checksum import Algorithm


class Checkpointer(CheckpointFinder):
    """Saves crash-safe checkpoints and restores objects from them.

    Parameters
    ----------
    checkpoints_dir : str or Path
        The directory; it is made if it does not exist.  The URL of an object store is that of a
        `mirror`, with a temporary directory.
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
    mirror, mirror_keep, mirror_grace_seconds
        As in `set_mirror`.

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
        mirror: str | None = None,
        mirror_keep: Policy | None = None,
        mirror_grace_seconds: float = 120.0,
    ) -> None:
        check_checksum(checksum)
        check_spare(spare)
        super().__init__(custom_load_hooks, custom_save_hooks, hooks, safe_globals)
        self.allow_partial_load = allow_partial_load
        self.asynchronous = asynchronous
        self.spare = spare
        self.keep = keep
        self.mirror_keep = mirror_keep
        self._checksum = checksum
        self._atomic_rename = atomic_rename
        if "://" in str(checkpoints_dir):
            from brain_ckpt.mirror.staging import stage_url

            checkpoints_dir, mirror = stage_url(str(checkpoints_dir), mirror)
        self.checkpoints_dir = checkpoints_dir
        if mirror is not None:
            self.set_mirror(mirror, keep=mirror_keep, grace_seconds=mirror_grace_seconds)
        self.add_recoverables({} if recoverables is None else recoverables)

    @property
    def checkpoints_dir(self) -> Path:
        """The directory of checkpoints.

        Assigning another one closes the current one first, and leaves the new one without mirror.
        """
        return self._directory.root

    @checkpoints_dir.setter
    def checkpoints_dir(self, directory: str | Path) -> None:
        path = check_directory(directory)
        if hasattr(self, "_writer"):
            self.close()
            self._end_mirror()
        self._copies = None
        make_directories(path)
        self._directory = SharedDirectory(path, self._checksum, renames=self._atomic_rename)
        self._writer = Writer(self._directory)
        self._reader = Reader(self._directory)
        self._deleter = Deleter(self._directory, self._reader)

    @property
    def mirror(self) -> str | None:
        """The URL of the object store that checkpoints are copied to, without credentials."""
        return None if self._copies is None else self._copies.shown

    def set_mirror(
        self, url: str | None, *, keep: Policy | None = None, grace_seconds: float = 120.0
    ) -> None:
        """Copy what is published here to an object store, beside training; every rank calls it.

        Checkpoints are then found in both places, and those that are only in the store are
        downloaded before they are loaded.  Needs the extra ``mirror``.

        Parameters
        ----------
        url : str, optional
            Such as "s3://bucket/runs/7", "gs://bucket/runs/7" or "az://container/runs/7"; one run
            has one.  Credentials come from the environment variables of the store.  None ends it.
        keep : Policy, optional
            What to keep there besides the newest; by default what the saves ask to keep here.
        grace_seconds : float
            How long `close`, and so the end of a run, waits for the last upload.

        Raises
        ------
        CheckpointMirrorError
            If the store cannot be reached, read and written; the text says what to correct.
        ValueError
            If the URL or the time is not valid.
        """
        self._end_mirror()
        self.mirror_keep = keep
        if url is not None:
            from brain_ckpt.mirror.copies import Copies
            from brain_ckpt.mirror.upkeep import Rules

            rules = Rules(keep, lambda: self.keep)
            self._copies = Copies(url, self._directory, rules, grace_seconds)

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
        return self._save(
            "save_checkpoint", None, meta, end_of_epoch=end_of_epoch, name=name, verbosity=verbosity
        )

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
            "save_and_keep_only",
            retention,
            meta,
            end_of_epoch=end_of_epoch,
            name=name,
            verbosity=verbosity,
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
        with collective_call("delete_checkpoints"):
            self._writer.wait()
            bounded, keep = self._mirror_retention(retention)
            self._deleter.delete(bounded or retention, keep, self.spare, verbosity)

    def poll(self) -> None:
        """Publish an asynchronous save that is written; every rank calls it after each step.

        Raises
        ------
        CheckpointSaveError
            If it could not be written.
        """
        self._writer.poll()
        if self._copies is not None:
            self._copies.poll()

    def close(self) -> None:
        """Wait for an asynchronous save, publish it and release the lock of the directory.

        With a mirror every rank calls it, and it waits for the last upload, for as long as
        `set_mirror` was told; what is missing then is logged, and uploaded by the next run here.

        Raises
        ------
        CheckpointSaveError
            If it could not be written.
        CheckpointLockedError
            If another run writes to the mirror.
        """
        try:
            self._writer.wait()
            if self._copies is not None:
                self._copies.finish()
                for retention in self._copies.take_postponed():
                    keep = self._copies.kept_here(self.keep)
                    self._deleter.delete_after_save(retention, keep, self.spare, logging.DEBUG)
        finally:
            self._writer.close()

    def _save(
        self,
        method: str,
        retention: Retention | None,
        meta: Mapping[str, Any] | None,
        **options: Any,
    ) -> Checkpoint | None:
        recoverables: list[Recoverable] = []

        def check() -> SaveRequest:
            if self._copies is not None:
                self._copies.raise_error()
            recoverables.extend(self._select())
            return make_request(meta, **options)

        def after() -> None:
            bounded, keep = self._mirror_retention(retention)
            if bounded is not None:
                self._deleter.delete_after_save(bounded, keep, self.spare, request.verbosity)

        with collective_result(method, check) as request:
            saved = self._writer.save(request, recoverables, after, asynchronous=self.asynchronous)
        if get_rank() != 0:
            return None
        self._deleter.mark_intact(saved)
        return saved

    def _mirror_retention(
        self, retention: Retention | None
    ) -> tuple[Retention | None, Policy | None]:
        """Upload what was published; return what to keep here, now and until it is uploaded."""
        if self._copies is None:
            return retention, self.keep
        bounded = self._copies.saved(retention)
        return bounded, self._copies.kept_here(self.keep)

    def _end_mirror(self) -> None:
        copies, self._copies = getattr(self, "_copies", None), None
        if copies is not None:
            copies.stop()
