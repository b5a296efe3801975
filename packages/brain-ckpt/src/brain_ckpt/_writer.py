"""Who writes to a directory of checkpoints: the lock, and one save at a time."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
import uuid
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from brain_ckpt import _fs
from brain_ckpt._errors import CheckpointError, CheckpointLockedError, CheckpointSaveError
from brain_ckpt._layout import SHARDS_DIRECTORY, directory_name, parse_leftover, stamped_name
from brain_ckpt._lock import DirectoryLock
from brain_ckpt._nodes import Nodes, common_names, discover, roll_forward
from brain_ckpt._ranks import decide, together
from brain_ckpt._retention import Checkpoint, ckpt_recency
from brain_ckpt._saving import (
    Item,
    Plan,
    Taken,
    call_savers,
    checkpoint_of,
    save_error,
    take,
    write,
)
from brain_ckpt._shards import save_shards
from brain_ckpt._snapshot import Snapshots
from brain_ckpt._store import Staging, Store, looks_like_checkpoint
from brain_dist import get_world_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from brain_ckpt._checksum import Algorithm

logger = logging.getLogger(__name__)

# A clock that was set back, or is coarse, must not hide a newer checkpoint.
_TICK_S = 0.001
_LOCK_PATIENCE_S = 1.0
_WRITER_NICENESS = 10
# Boundaries between two looks at the writer, once a save has been under way for a while.
_MOST_SKIPPED_POLLS = 16

# Saves that are not published yet, so that the end of the process can see to them.
_unfinished: set[Writer] = set()


@dataclass(frozen=True)
class Request:
    """What a save was asked for.

    Parameters
    ----------
    meta : dict
        Plain values.
    end_of_epoch : bool
        Goes into the meta file.
    name : str or None
        The checkpoint's name; None makes one from the time.
    verbosity : int
        The level to log at.
    """

    meta: dict[str, Any]
    end_of_epoch: bool
    name: str | None
    verbosity: int


class _Survey(NamedTuple):
    newest_s: float
    seq: int
    taken: frozenset[str]


@dataclass
class _Flight:
    plan: Plan
    items: Sequence[Item]
    verbosity: int
    after: Callable[[], None]
    thread: threading.Thread | None = None
    error: BaseException | None = None
    polls: int = 0
    next_look: int = field(default=1)


class Writer:
    """Saves into one directory.

    Parameters
    ----------
    root : Path
        The directory.
    algorithm : str
        The checksum.
    """

    def __init__(self, root: Path, algorithm: Algorithm) -> None:
        self.run = uuid.uuid4().hex[:12]
        self.store = Store(root, self.run, algorithm)
        self._lock: DirectoryLock | None = None
        self._staging: Staging | None = None
        self._seq = 0
        self._flight: _Flight | None = None
        self._snapshots = Snapshots()
        self._shard_group: Any = None
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
        nodes = self.nodes()
        plan = self._begin(request)
        try:
            states: dict[str, Any] = {}
            copy = self._snapshots.copy if asynchronous else None
            shards: dict[str, Any] = {}
            owned = together(lambda: self._take(items, plan, states, shards, copy))
            if shards:
                # Sharded alike on every rank, so that every rank comes here.
                together(lambda: self._save_shards(plan, shards))
            nodes.on_leaders(lambda: call_savers(items, plan))
            if asynchronous:
                self._take_off(_Flight(plan, items, request.verbosity, after), states, owned)
                return checkpoint_of(plan, items)
            nodes.on_leaders(lambda: self._write(plan, states, owned))
            nodes.on_leaders(lambda: self._publish(plan, request.verbosity))
        except BaseException as error:
            self._discard()
            if not isinstance(error, Exception):
                raise
            raise save_error(error, plan.final) from error
        after()
        return checkpoint_of(plan, items)

    def poll(self) -> None:
        """Publish a save that has been written meanwhile; every rank calls it at the same steps.

        Raises
        ------
        CheckpointSaveError
            If it could not be written.
        """
        flight = self._flight
        if flight is None:
            return
        flight.polls += 1
        if get_world_size() > 1:
            # Asking the first rank costs a message; ask at 1, 2, 4, … 16, 32, 48 boundaries.
            if flight.polls < flight.next_look:
                return
            flight.next_look += min(flight.next_look, _MOST_SKIPPED_POLLS)
        if self.nodes().all_leaders(lambda: flight.thread is None or not flight.thread.is_alive()):
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
        self._flight = None
        _unfinished.discard(self)
        try:
            # On all nodes it is written before it is published on any.
            self.nodes().on_leaders(lambda: self._join(flight))
            self.nodes().on_leaders(lambda: self._publish(flight.plan, flight.verbosity))
        except BaseException as error:
            self._discard()
            if not isinstance(error, Exception):
                raise
            raise save_error(error, flight.plan.final) from error
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

    def _survey(self, request: Request) -> _Survey:
        store = self.store
        make_directory(store.root)
        self.lock()
        try:
            store.tidy()
        except OSError as error:
            logger.warning("%s could not be tidied: %s", store.root, error)
        listing = store.listing()
        names = _fs.names(store.root)
        if request.name is not None:
            final = store.root / directory_name(request.name)
            mine = _fs.is_directory(final) and looks_like_checkpoint(final)
            if final.name in names and not mine:
                raise ValueError(
                    f"a checkpoint replaces only one of its name, got {final}, which is none; "
                    f"move it away or choose another name"
                )
        taken = {*names, *(left.checkpoint for name in names if (left := parse_leftover(name)))}
        newest_s = max(map(ckpt_recency, listing.checkpoints), default=0.0)
        return _Survey(newest_s, listing.seq, frozenset(taken))

    def _plan(self, request: Request, surveys: Sequence[_Survey]) -> Plan:
        taken = frozenset().union(*(survey.taken for survey in surveys))
        name = (
            stamped_name(time.time(), taken)
            if request.name is None
            else directory_name(request.name)
        )
        newest_s = max(survey.newest_s for survey in surveys)
        meta = {
            "unixtime": max(time.time(), newest_s + _TICK_S),
            "end-of-epoch": request.end_of_epoch,
            **request.meta,
        }
        self._seq = max(self._seq, *(survey.seq for survey in surveys)) + 1
        root = self.store.root
        staging = root / self.store.next_temporary_name(name)
        return Plan(staging, root / name, meta, self._seq, uuid.uuid4().hex, get_world_size())

    def _stage(self, plan: Plan) -> Plan:
        self._staging = self.store.stage(plan.staging.name, plan.final.name)
        return plan

    def _take(
        self,
        items: Sequence[Item],
        plan: Plan,
        states: dict[str, Any],
        shards: dict[str, Any],
        copy: Callable[[Any], Any] | None,
    ) -> dict[str, bytes]:
        self._snapshots.begin()
        taken = take(items, plan, leads=self.nodes().leads, copy=copy)
        self._snapshots.end()
        states.update(taken.states)
        shards.update(taken.shards)
        return taken.own

    def _save_shards(self, plan: Plan, shards: dict[str, Any]) -> None:
        from torch import distributed

        if self._shard_group is None:
            self._shard_group = distributed.new_group(backend="gloo")  # type: ignore[no-untyped-call,unused-ignore]  # untyped in torch
        if not self.nodes().shared:
            raise CheckpointSaveError(
                f"sharded state is saved where all nodes share a file system, got nodes of which "
                f"each has a {self.store.root} of its own; choose a directory that all of them see"
            )
        save_shards(shards, plan.staging / SHARDS_DIRECTORY, self._shard_group)

    def _write(
        self,
        plan: Plan,
        states: dict[str, Any],
        owned: list[dict[str, bytes]],
    ) -> None:
        assert self._staging is not None
        taken = Taken(states, {}, {})
        write(self.store, self._staging, plan, taken, owned)

    def _publish(self, plan: Plan, verbosity: int) -> None:
        assert self._staging is not None
        self.store.publish(self._staging)
        self._staging = None
        kind = "end-of-epoch" if plan.meta["end-of-epoch"] else "intra-epoch"
        logger.log(verbosity, "saved an %s checkpoint in %s", kind, plan.final)
        try:
            self.store.tidy()
        except OSError as error:
            logger.warning("%s could not be tidied: %s", self.store.root, error)

    def _discard(self) -> None:
        staging, self._staging = self._staging, None
        if staging is not None:
            self.store.discard(staging)

    def _take_off(
        self, flight: _Flight, states: dict[str, Any], owned: list[dict[str, bytes]]
    ) -> None:
        def work() -> None:
            _give_way()
            try:
                self._write(flight.plan, states, owned)
            except BaseException as error:  # noqa: BLE001 - raised where the save is published
                flight.error = error

        if self.nodes().leads:
            flight.thread = threading.Thread(target=work, name="brain-ckpt-save")
            flight.thread.start()
        self._flight = flight
        if not _unfinished:
            atexit.unregister(_finish_all)
            atexit.register(_finish_all)
        _unfinished.add(self)

    def _join(self, flight: _Flight) -> None:
        if flight.thread is not None:
            flight.thread.join()
        if flight.error is not None:
            raise flight.error


def _give_way() -> None:
    # Where training wants all cores, the writer gets a tenth of one.
    if sys.platform != "linux":
        return  # elsewhere it is the whole process that would give way
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _WRITER_NICENESS)


def make_directory(path: Path) -> None:
    """Make a directory with its parents, and have the disk confirm each that is new."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        _fs.fsync_directory(new.parent)


def _finish_all() -> None:
    for writer in list(_unfinished):
        try:
            writer.wait()
        except CheckpointError:  # noqa: PERF203 - each one has to be tried
            logger.exception("the last checkpoint was not saved")
