"""A save from the copied state to its publication, perhaps beside training."""

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

    from brain_ckpt.saving.files import Taken
    from brain_ckpt.saving.plan import Plan
    from brain_ckpt.saving.shards import ShardFile, ShardPlan
    from brain_ckpt.saving.writer import Writer

logger = logging.getLogger(__name__)

_WRITER_NICENESS = 10
# Boundaries between two looks at the writers, once a save has been under way for a while.
_MOST_SKIPPED_POLLS = 16

# Who has a save that is not published yet, so that the end of the process can see to it.
_unfinished: set[Writer] = set()


@dataclass
class Flight:
    """One save that is under way.

    Parameters
    ----------
    plan : Plan
        What was decided.
    taken : Taken
        The state of this rank.
    owned : list of dict
        The files that only one rank has, of every rank.
    after : callable
        Runs on every rank once the checkpoint is published.
    verbosity : int
        The level to log at.
    background : bool
        Whether a thread does the work, beside training.
    shards : ShardPlan, optional
        What every rank writes of the tensors that they share.
    """

    plan: Plan
    taken: Taken
    owned: list[dict[str, bytes]]
    after: Callable[[], None]
    verbosity: int
    background: bool
    shards: ShardPlan | None = None
    shard_file: ShardFile | None = None
    sealing: bool = False
    _thread: threading.Thread | None = None
    _error: BaseException | None = None
    _polls: int = 0
    _next_look: int = field(default=1)

    def start(self, work: Callable[[], Any]) -> None:
        """Do some work, in the background if this save is; what it raises is raised by `join`."""

        def run() -> None:
            if self.background:
                _give_way()
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised where the save is published
                self._error = error

        if self.background:
            self._thread = threading.Thread(target=run, name="brain-ckpt-save")
            self._thread.start()
        else:
            run()

    @property
    def idle(self) -> bool:
        """Whether this rank's work is done."""
        return self._thread is None or not self._thread.is_alive()

    def join(self) -> None:
        """Wait for this rank's work, and raise what it raised."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def is_worth_a_look(self, world: int) -> bool:
        """Say whether to ask the ranks at this boundary; the same on all of them."""
        self._polls += 1
        if world == 1:
            return True
        # Asking costs a message; ask at 1, 2, 4, … 16, 32, 48 boundaries.
        if self._polls < self._next_look:
            return False
        self._next_look += min(self._next_look, _MOST_SKIPPED_POLLS)
        return True


def see_to_at_exit(writer: Writer) -> None:
    """Have the end of the process publish what a writer has under way."""
    if not _unfinished:
        atexit.unregister(_finish_all)
        atexit.register(_finish_all)
    _unfinished.add(writer)


def is_seen_to(writer: Writer) -> None:
    """Take back `see_to_at_exit`."""
    _unfinished.discard(writer)


def _finish_all() -> None:
    for writer in list(_unfinished):
        try:
            writer.wait()
        except CheckpointError:  # noqa: PERF203 - each one has to be tried
            logger.exception("the last checkpoint was not saved")


def _give_way() -> None:
    # Where training wants all cores, the writer gets a tenth of one.
    if sys.platform != "linux":
        return  # elsewhere it is the whole process that would give way
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _WRITER_NICENESS)
