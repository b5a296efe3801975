"""Who writes to a directory of checkpoints: the lock, and one save at a time."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
import weakref
from typing import TYPE_CHECKING

from brain_ckpt.errors import CheckpointLockedError, CheckpointSaveError
from brain_ckpt.ranks.agreement import decide, together
from brain_ckpt.ranks.nodes import Nodes, common_names, discover, roll_forward
from brain_ckpt.saving.buffers import Snapshots
from brain_ckpt.saving.files import (
    Item,
    Taken,
    call_savers,
    checkpoint_of,
    save_error,
    seal,
    take,
    write_states,
)
from brain_ckpt.saving.pending import Flight, is_seen_to, see_to_at_exit
from brain_ckpt.saving.plan import Plan, Request, Survey, make_plan, survey
from brain_ckpt.saving.shards import ShardFile, ShardPlan, plan_shards, write_shards
from brain_ckpt.storage import filesystem
from brain_ckpt.storage.layout import SHARDS_DIRECTORY
from brain_ckpt.storage.lock import DirectoryLock
from brain_ckpt.storage.store import Store
from brain_dist import get_world_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from brain_ckpt.retention.policies import Checkpoint
    from brain_ckpt.storage.checksum import Algorithm
    from brain_ckpt.storage.commit import Staging

logger = logging.getLogger(__name__)

_LOCK_PATIENCE_S = 1.0


class Writer:
    """Saves into one directory.

    Parameters
    ----------
    root : Path
        The directory.
    algorithm : str
        The checksum.
    renames : bool
        Whether the file system renames a directory in one step.
    """

    def __init__(self, root: Path, algorithm: Algorithm, *, renames: bool = True) -> None:
        self.run = uuid.uuid4().hex[:12]
        self.store = Store(root, self.run, algorithm, renames=renames)
        self._lock: DirectoryLock | None = None
        self._staging: Staging | None = None
        self._seq = 0
        self._flight: Flight | None = None
        self._snapshots = Snapshots()
        self._nodes: Nodes | None = None
        self._nodes_world = 0

    def save(
        self,
        request: Request,
        items: Sequence[Item],
        after: Callable[[], None],
        *,
        asynchronous: bool,
    ) -> Checkpoint:
        """Save; every rank calls it.

        Parameters
        ----------
        request : Request
            What.
        items : sequence of Item
            The recoverables.
        after : callable
            Runs on every rank once the checkpoint is published.
        asynchronous : bool
            Whether to return as soon as the state is copied.

        Raises
        ------
        CheckpointSaveError
            If it was not saved.
        CheckpointLockedError
            If another process writes here.
        """
        self.wait()
        plan = self._begin(request)
        with self._nothing_left_on_error(plan):
            taken, owned = self._take(items, plan, asynchronous=asynchronous)
            flight = Flight(plan, taken, owned, after, request.verbosity, asynchronous)
            if taken.shards:
                # Sharded alike on every rank, so that every rank comes here.
                flight.shards = self._plan_shards(taken)
            self.nodes().on_leaders(lambda: call_savers(items, plan))
        self._flight = flight
        if asynchronous:
            see_to_at_exit(self)
        if self._staging is not None or flight.shards is not None:
            flight.start(lambda: self._write(flight))
        if not asynchronous:
            self.wait()
        return checkpoint_of(plan, items)

    def poll(self) -> None:
        """Publish a save that has been written meanwhile; every rank calls it at the same steps.

        Raises
        ------
        CheckpointSaveError
            If it could not be written.
        """
        flight = self._flight
        if flight is None or not flight.is_worth_a_look(get_world_size()):
            return
        if flight.shards is not None and not flight.sealing:
            if all(together(lambda: flight.idle)):
                with self._nothing_left_on_error(flight.plan):
                    self._start_sealing(flight)
        elif self.nodes().all_leaders(lambda: flight.idle):
            self.wait()

    def wait(self) -> None:
        """Publish the save that is under way, as soon as it is written; every rank calls it.

        Raises
        ------
        CheckpointSaveError
            If it could not be written.
        """
        flight = self._flight
        if flight is None:
            return
        flight.background = False  # nobody trains beside what is still to be done
        with self._nothing_left_on_error(flight.plan):
            if flight.shards is not None and not flight.sealing:
                self._start_sealing(flight)
            self._publish(flight)
        self._flight = None
        is_seen_to(self)
        flight.after()

    def lock(self) -> None:
        """Take the directory's lock for the rest of this run.

        Raises
        ------
        CheckpointLockedError
            If another process has it.
        """
        if self._lock is None:
            self._lock = DirectoryLock(self.store.root, self.run)
            weakref.finalize(self, self._lock.release)
        deadline = time.monotonic() + _LOCK_PATIENCE_S
        # A reader that puts right what a dead run left has it for a moment.
        while (holder := self._lock.acquire()) is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        if holder is not None:
            raise CheckpointLockedError(
                f"one run at a time writes to {self.store.root}, got a second one; it is written "
                f"by {holder}: stop that run, or give this one a directory of its own"
            )

    def nodes(self) -> Nodes:
        """Return which ranks share the directory; all ranks make the first call together."""
        if self._nodes is None or self._nodes_world != get_world_size():
            self._nodes, self._nodes_world = discover(self.store.root), get_world_size()
        return self._nodes

    def settle(self) -> None:
        """Bring nodes without a shared file system into agreement; every rank calls it."""
        if not self.nodes().shared:
            roll_forward(self.nodes(), self.store, self.lock)

    def common_names(self) -> set[str] | None:
        """Return the checkpoints that every node has; None where there is one directory."""
        return None if self.nodes().shared else common_names(self.nodes(), self.store)

    def close(self) -> None:
        """Publish what is under way and give the lock back."""
        try:
            self.wait()
        finally:
            if self._lock is not None:
                self._lock.release()

    def tidy_if_free(self) -> None:
        """Put right what a dead run left, unless another run is alive here."""
        store = self.store
        if not store.has_leftovers():
            return
        try:
            lock = DirectoryLock(store.root, self.run)
            if lock.acquire() is None:
                try:
                    store.tidy()
                finally:
                    lock.release()
        except OSError as error:
            logger.info("%s is left as it is: %s", store.root, error)

    def _begin(self, request: Request) -> Plan:
        where = self.store.root / (request.name or "a new checkpoint")
        nodes = self.nodes()
        try:
            if nodes.shared:
                return decide(lambda: self._stage(self._plan(request, [self._survey(request)])))
            self.settle()
            surveys = together(lambda: self._survey(request) if nodes.leads else None)
            plan = decide(lambda: self._plan(request, [one for one in surveys if one is not None]))
            root = self.store.root
            plan = plan._replace(staging=root / plan.staging.name, final=root / plan.final.name)
            nodes.on_leaders(lambda: self._stage(plan))
        except BaseException as error:
            self._discard()
            # A name that cannot be used and a directory of another run are the caller's errors.
            mine = isinstance(error, Exception)
            if not mine or isinstance(error, (CheckpointLockedError, ValueError)):
                raise
            raise save_error(error, where) from error
        return plan

    def _survey(self, request: Request) -> Survey:
        make_directory(self.store.root)
        self.lock()
        return survey(self.store, request)

    def _plan(self, request: Request, surveys: Sequence[Survey]) -> Plan:
        plan = make_plan(self.store, request, surveys, self._seq)
        self._seq = plan.seq
        return plan

    def _stage(self, plan: Plan) -> Plan:
        self._staging = self.store.stage(plan.staging.name, plan.final.name)
        return plan

    def _take(
        self, items: Sequence[Item], plan: Plan, *, asynchronous: bool
    ) -> tuple[Taken, list[dict[str, bytes]]]:
        found: list[Taken] = []

        def mine() -> dict[str, bytes]:
            self._snapshots.begin()
            copy = self._snapshots.copy if asynchronous else None
            found.append(take(items, plan, leads=self.nodes().leads, copy=copy))
            self._snapshots.end()
            return found[0].own

        owned = together(mine)
        return found[0], owned

    def _plan_shards(self, taken: Taken) -> ShardPlan:
        def make_room() -> None:
            if not self.nodes().shared:
                raise CheckpointSaveError(
                    f"sharded state is saved where all nodes share a file system, got nodes of "
                    f"which each has a {self.store.root} of its own; choose a directory that all "
                    f"of them see"
                )
            assert self._staging is not None
            self.store.subdirectory(self._staging, SHARDS_DIRECTORY)

        self.nodes().on_leaders(make_room)
        return plan_shards(taken.shards)

    def _write(self, flight: Flight) -> None:
        """Write what this rank has to write; without communication."""
        if self._staging is not None:
            write_states(self.store, self._staging, flight.taken.states, flight.owned)
        if flight.shards is not None:
            flight.shard_file = write_shards(
                flight.plan.staging, flight.shards, flight.taken.parts, self.store.algorithm
            )
        else:
            self._seal(flight, [])

    def _start_sealing(self, flight: Flight) -> None:
        """Once every rank has written: the leader needs to know what."""

        def written() -> ShardFile | None:
            flight.join()
            return flight.shard_file

        files = [one for one in together(written) if one is not None]
        flight.sealing = True
        if self._staging is not None:
            flight.start(lambda: self._seal(flight, files))

    def _seal(self, flight: Flight, files: Sequence[ShardFile]) -> None:
        assert self._staging is not None
        seal(self.store, self._staging, flight.plan, flight.shards, files)

    def _publish(self, flight: Flight) -> None:
        def publish() -> None:
            assert self._staging is not None
            self.store.publish(self._staging)
            self._staging = None
            kind = "end-of-epoch" if flight.plan.meta["end-of-epoch"] else "intra-epoch"
            logger.log(flight.verbosity, "saved an %s checkpoint in %s", kind, flight.plan.final)
            try:
                self.store.tidy()
            except OSError as error:
                logger.warning("%s could not be tidied: %s", self.store.root, error)

        # On all nodes it is written before it is published on any.
        self.nodes().on_leaders(flight.join)
        self.nodes().on_leaders(publish)

    @contextlib.contextmanager
    def _nothing_left_on_error(self, plan: Plan) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._flight = None
            is_seen_to(self)
            self._discard()
            if not isinstance(error, Exception) or isinstance(error, CheckpointSaveError):
                raise
            raise save_error(error, plan.final) from error

    def _discard(self) -> None:
        staging, self._staging = self._staging, None
        if staging is not None:
            self.store.discard(staging)


def make_directory(path: Path) -> None:
    """Make a directory with its parents, and have the disk confirm each that is new."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        filesystem.fsync_directory(new.parent)
