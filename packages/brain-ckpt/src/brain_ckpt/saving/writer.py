"""Save checkpoints to one directory, one at a time, blocking or in the background."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from brain_ckpt.errors import CheckpointLockedError, CheckpointSaveError
from brain_ckpt.ranks.agreement import gather_results, run_on_first_rank
from brain_ckpt.saving.buffers import SnapshotBuffers
from brain_ckpt.saving.files import CheckpointFiles, planned_checkpoint, save_error
from brain_ckpt.saving.pending import PendingSave, cancel_finish_at_exit, finish_at_exit
from brain_ckpt.saving.plan import (
    DirectoryState,
    SavePlan,
    SaveRequest,
    make_plan,
    read_directory_state,
)
from brain_ckpt.saving.shards import ShardFile, ShardPlan, plan_shards, write_shards
from brain_ckpt.saving.snapshot import Snapshot, take_snapshot
from brain_ckpt.storage import filesystem
from brain_ckpt.storage.layout import SHARDS_DIRECTORY
from brain_ckpt.storage.lock import LastSave
from brain_dist import get_world_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from brain_ckpt.ranks.shared_directory import SharedDirectory
    from brain_ckpt.recoverables.registry import Recoverable
    from brain_ckpt.retention.checkpoint import Checkpoint

logger = logging.getLogger(__name__)


class Writer:
    """Saves checkpoints to one directory.

    Parameters
    ----------
    directory : SharedDirectory
        The directory.
    """

    def __init__(self, directory: SharedDirectory) -> None:
        self._directory = directory
        self._store = directory.store
        self._files: CheckpointFiles | None = None  # on leaders, during a save
        self._pending: PendingSave | None = None
        self._buffers = SnapshotBuffers()

    def save(
        self,
        request: SaveRequest,
        recoverables: Sequence[Recoverable],
        after: Callable[[], None],
        *,
        asynchronous: bool,
    ) -> Checkpoint:
        """Save a checkpoint; every rank calls it.

        Parameters
        ----------
        request : SaveRequest
            The arguments of the save.
        recoverables : sequence of Recoverable
            The objects to save.
        after : callable
            Called on every rank once the checkpoint is published.
        asynchronous : bool
            Whether to return as soon as the state is copied.

        Raises
        ------
        CheckpointSaveError
            If the checkpoint was not saved.
        CheckpointLockedError
            If another process writes to the directory.
        """
        self.wait()
        plan = self._begin(request)
        with self._discard_on_error(plan):
            snapshot, rank_files = self._take_snapshot(
                recoverables, plan, asynchronous=asynchronous
            )
            pending = PendingSave(
                plan, snapshot, rank_files, after, request.verbosity, asynchronous
            )
            # Either all ranks have shards or none has.
            if snapshot.shards:
                pending.shards = self._plan_shards(snapshot)
            self._on_leaders(lambda files: files.call_savers(recoverables))
        self._pending = pending
        if asynchronous:
            finish_at_exit(self.wait)
        if self._files is not None or pending.shards is not None:
            pending.start(lambda: self._write(pending))
        if not asynchronous:
            self.wait()
        return planned_checkpoint(plan, recoverables)

    def poll(self) -> None:
        """Publish a pending save that is written; every rank calls it at the same steps.

        Raises
        ------
        CheckpointSaveError
            If it could not be written.
        """
        pending = self._pending
        if pending is None or not pending.should_poll(get_world_size()):
            return
        if pending.shards is not None and not pending.sealing:
            if all(gather_results(lambda: pending.is_written)):
                with self._discard_on_error(pending.plan, in_background=pending.background):
                    self._start_sealing(pending)
        elif self._directory.nodes().all_leaders_agree(lambda: pending.is_written):
            self.wait()

    def wait(self) -> None:
        """Wait for a pending save and publish it; every rank calls it.

        Raises
        ------
        CheckpointSaveError
            If it could not be written.
        """
        pending = self._pending
        if pending is None:
            return
        was_in_background = pending.background
        pending.background = False  # training waits, so the rest is done in this thread
        with self._discard_on_error(pending.plan, in_background=was_in_background):
            if pending.shards is not None and not pending.sealing:
                self._start_sealing(pending)
            self._publish(pending)
        self._pending = None
        cancel_finish_at_exit(self.wait)
        pending.after()

    def close(self) -> None:
        """Publish a pending save and release the lock of the directory."""
        try:
            self.wait()
        finally:
            self._directory.unlock()

    def _begin(self, request: SaveRequest) -> SavePlan:
        final = self._store.root / (request.name or "a new checkpoint")
        nodes = self._directory.nodes()

        def begin_on_shared_directory() -> SavePlan:
            plan = self._plan(request, [self._lock_and_read(request)])
            self._files = CheckpointFiles(self._store, plan)
            return plan

        try:
            if nodes.shared:
                return run_on_first_rank(begin_on_shared_directory)
            return self._begin_on_nodes(request)
        except BaseException as error:
            self._discard()
            # An invalid name and a directory of another run are errors of the caller.
            if not isinstance(error, Exception) or isinstance(
                error, (CheckpointLockedError, ValueError)
            ):
                raise
            raise save_error(error, final, request.meta) from error

    def _begin_on_nodes(self, request: SaveRequest) -> SavePlan:
        nodes, root = self._directory.nodes(), self._store.root
        self._directory.reconcile_nodes()
        states = gather_results(lambda: self._lock_and_read(request) if nodes.is_leader else None)
        plan = run_on_first_rank(
            lambda: self._plan(request, [state for state in states if state is not None])
        )
        plan = plan._replace(staging=root / plan.staging.name, final=root / plan.final.name)

        def stage() -> None:
            self._files = CheckpointFiles(self._store, plan)

        nodes.run_on_leaders(stage)
        return plan

    def _lock_and_read(self, request: SaveRequest) -> DirectoryState:
        filesystem.make_directories(self._store.root)
        self._directory.lock()
        return read_directory_state(self._store, request, self._directory.last_save())

    def _plan(self, request: SaveRequest, states: Sequence[DirectoryState]) -> SavePlan:
        plan = make_plan(self._store, request, states)
        last = self._directory.last_save()
        name = plan.final.name if request.name is None else last.name
        self._directory.note_save(LastSave(name, plan.time_s, plan.seq))
        return plan

    def _take_snapshot(
        self, recoverables: Sequence[Recoverable], plan: SavePlan, *, asynchronous: bool
    ) -> tuple[Snapshot, list[dict[str, bytes]]]:
        snapshots: list[Snapshot] = []

        def take() -> dict[str, bytes]:
            self._buffers.begin()
            snapshot = take_snapshot(
                recoverables,
                plan.staging,
                is_leader=self._directory.nodes().is_leader,
                copy=self._buffers.copy if asynchronous else None,
            )
            self._buffers.end()
            snapshots.append(snapshot)
            return snapshot.rank_files

        # 10 kB and more of each rank: only who writes them gets them.
        rank_files = gather_results(take, dst=0 if self._directory.nodes().shared else None)
        return snapshots[0], rank_files

    def _plan_shards(self, snapshot: Snapshot) -> ShardPlan:
        def make_subdirectory(files: CheckpointFiles) -> None:
            if not self._directory.nodes().shared:
                raise CheckpointSaveError(
                    f"sharded state can only be saved if all nodes share a file system, got nodes "
                    f"that each have their own {self._store.root}; choose a directory that all of "
                    f"them see"
                )
            files.make_subdirectory(SHARDS_DIRECTORY)

        self._on_leaders(make_subdirectory)
        return plan_shards(snapshot.shards)

    def _write(self, pending: PendingSave) -> None:
        """Write the files of this rank, without communication."""
        if self._files is not None:
            self._files.write_states(pending.snapshot, pending.rank_files)
        if pending.shards is not None:
            parts = pending.snapshot.parts
            pending.shard_file = write_shards(
                pending.plan.staging, pending.shards, parts, self._store.algorithm
            )
        elif self._files is not None:
            self._files.seal(None, [])

    def _start_sealing(self, pending: PendingSave) -> None:
        """Tell the leader what every rank has written; it then writes index and manifest."""

        def written_file() -> ShardFile | None:
            pending.join()
            return pending.shard_file

        shard_files = [file for file in gather_results(written_file) if file is not None]
        pending.sealing = True
        files = self._files
        if files is not None:
            pending.start(lambda: files.seal(pending.shards, shard_files))

    def _publish(self, pending: PendingSave) -> None:
        def publish(files: CheckpointFiles) -> None:
            files.publish()
            self._files = None
            kind = "end of epoch" if pending.plan.meta["end-of-epoch"] else "inside an epoch"
            logger.log(pending.verbosity, "Saved checkpoint %s (%s)", pending.plan.final, kind)
            try:
                self._store.clean_up_replaced(pending.plan.final.name)
            except OSError as error:
                logger.warning("The cleanup of %s failed: %s", self._store.root, error)

        # Written on all nodes before it is published on any.
        self._directory.nodes().run_on_leaders(pending.join)
        self._on_leaders(publish)

    def _on_leaders(self, action: Callable[[CheckpointFiles], object]) -> None:
        def call() -> None:
            assert self._files is not None
            action(self._files)

        self._directory.nodes().run_on_leaders(call)

    @contextlib.contextmanager
    def _discard_on_error(self, plan: SavePlan, *, in_background: bool = False) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._pending = None
            cancel_finish_at_exit(self.wait)
            self._discard()
            if not isinstance(error, Exception) or isinstance(error, CheckpointSaveError):
                raise
            made = save_error(error, plan.final, plan.meta)
            made.in_background = in_background
            raise made from error

    def _discard(self) -> None:
        files, self._files = self._files, None
        if files is not None:
            files.discard()
