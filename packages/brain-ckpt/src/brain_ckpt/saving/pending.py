"""A save that is not published yet, and its publication when the interpreter exits."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from brain_ckpt.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable

    from brain_ckpt.saving.plan import SavePlan
    from brain_ckpt.saving.shards import ShardFile, ShardPlan
    from brain_ckpt.saving.snapshot import Snapshot

logger = logging.getLogger(__name__)

_WRITER_NICENESS = 10
# The longest interval, in calls of `poll`, at which the ranks are asked whether they are done.
_MAX_POLL_INTERVAL = 16

# What to call at exit for each save that is pending.
_unfinished: set[Callable[[], None]] = set()


@dataclass
class PendingSave:
    """One save from the snapshot to its publication.

    Parameters
    ----------
    plan : SavePlan
        The decisions about the save.
    snapshot : Snapshot
        The state of this rank.
    rank_files : list of dict
        The files that each rank has its own of, in rank order.
    after : callable
        Called on every rank once the checkpoint is published.
    verbosity : int
        The level to log at.
    background : bool
        Whether a thread writes it during training.
    shards : ShardPlan, optional
        The parts that each rank writes of sharded tensors.
    """

    plan: SavePlan
    snapshot: Snapshot
    rank_files: list[dict[str, bytes]]
    after: Callable[[], None]
    verbosity: int
    background: bool
    shards: ShardPlan | None = None
    shard_file: ShardFile | None = None
    sealing: bool = False
    _thread: threading.Thread | None = None
    _error: BaseException | None = None
    _polls: int = 0
    _next_poll: int = field(default=1)

    def start(self, work: Callable[[], Any]) -> None:
        """Do work, in a thread for a background save; `join` raises its error."""

        def run() -> None:
            if self.background:
                lower_thread_priority()
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised by join
                self._error = error

        if self.background:
            self._thread = threading.Thread(target=run, name="brain-ckpt-save")
            self._thread.start()
        else:
            run()

    @property
    def is_written(self) -> bool:
        """Whether the work of this rank is done."""
        return self._thread is None or not self._thread.is_alive()

    def join(self) -> None:
        """Wait for the work of this rank and raise its error."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def should_poll(self, world_size: int) -> bool:
        """Return whether to ask the ranks in this call of `poll`; the same on all of them."""
        self._polls += 1
        if world_size == 1:
            return True
        # Asking costs a message, so ask at calls 1, 2, 4, … 16, 32, 48.
        if self._polls < self._next_poll:
            return False
        self._next_poll += min(self._next_poll, _MAX_POLL_INTERVAL)
        return True


def finish_at_exit(finish: Callable[[], None]) -> None:
    """Call a function that publishes a pending save when the interpreter exits."""
    if not _unfinished:
        atexit.unregister(_finish_all)
        atexit.register(_finish_all)
    _unfinished.add(finish)


def cancel_finish_at_exit(finish: Callable[[], None]) -> None:
    """Undo `finish_at_exit`."""
    _unfinished.discard(finish)


def _finish_all() -> None:
    for finish in list(_unfinished):
        try:
            finish()
        except CheckpointError:  # noqa: PERF203 - try each of them
            logger.exception("The last checkpoint was not saved")


def lower_thread_priority() -> None:
    """Give this thread, and those that it starts, a tenth of a core beside training."""
    # Training that uses all cores leaves the writer a tenth of one.
    if sys.platform != "linux":
        return  # elsewhere this would be the priority of the process
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _WRITER_NICENESS)
