"""Copy what is published in a directory to a mirror, in a thread of its own."""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import time
from typing import TYPE_CHECKING

from brain_ckpt.errors import (
    CheckpointError,
    CheckpointGoneError,
    CheckpointLockedError,
    CheckpointMirrorError,
)
from brain_ckpt.mirror.objects import UnavailableError
from brain_ckpt.mirror.priority import choose_left_out, upload_order
from brain_ckpt.mirror.publish import missing_parts, read_local, upload_parts
from brain_ckpt.mirror.retries import pause_s
from brain_ckpt.mirror.upkeep import Upkeep
from brain_ckpt.mirror.workers import Workers
from brain_ckpt.retention.checkpoint import ckpt_recency
from brain_ckpt.saving.pending import lower_thread_priority
from brain_ckpt.storage.listing import list_published

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from brain_ckpt.mirror.listing import MirrorLister, MirrorListing
    from brain_ckpt.mirror.objects import ObjectStore
    from brain_ckpt.mirror.publish import Publisher
    from brain_ckpt.mirror.share import Share
    from brain_ckpt.mirror.upkeep import Rules
    from brain_ckpt.retention.checkpoint import Checkpoint
    from brain_ckpt.retention.selection import Retention

logger = logging.getLogger(__name__)

# Two are a third faster, and take more of the processor from training.
_REQUESTS_AT_A_TIME = 1
# Beside training, an upload pauses after each part, for this multiple of the time that it took.
_PAUSE_PER_PART = 1.0
# How often the first rank looks whether the parts of other nodes have arrived.
_LOOK_EVERY_S = 0.5
# The longest pause between attempts while a run waits for its last upload.
_HURRIED_S = 2.0


# The uploaders of this process whose threads run, for its end.
_running: set[Uploader] = set()


class _StoppedError(Exception):
    """The thread is to end."""


class _OthersAreBusyError(Exception):
    """Other nodes have not uploaded their files yet."""


class Uploader:
    """Uploads the checkpoints of a directory, and applies the retention of the mirror.

    Parameters
    ----------
    store : ObjectStore
        The mirror.
    root : Path
        The directory.
    lister : MirrorLister
        Lists the mirror.
    publisher : Publisher
        Puts the manifests.
    share : Share
        Which files this process uploads, and whether it publishes.
    rules : Rules
        What to keep in the mirror.
    listing : MirrorListing
        What the mirror holds.  Older checkpoints of the directory are not uploaded.
    grace_s : float
        How long the end of the process waits for the last upload, in seconds.
    """

    def __init__(
        self,
        store: ObjectStore,
        root: Path,
        lister: MirrorLister,
        publisher: Publisher,
        share: Share,
        rules: Rules,
        listing: MirrorListing,
        grace_s: float,
    ) -> None:
        self._store = store
        self._root = root
        self._publisher = publisher
        self._share = share
        self._upkeep = Upkeep(store, root, lister, rules)
        self._changed = threading.Condition()
        self._requested = 1  # what an earlier run has not uploaded
        self._attempted = 0  # what was requested when the attempt under way began
        self._done = 0
        self._is_stopping = False
        self._is_ending = False
        self._grace_s = grace_s
        self._failures = 0
        self._part_started = 0.0
        self._error: CheckpointError | None = None
        self._left_out: set[str | None] = set()
        self._mirrored = listing.checkpoints(root)
        self._commits: set[str | None] = set(listing.by_commit())
        self._oldest_s = max(map(ckpt_recency, self._mirrored), default=float("-inf"))
        self._is_hurried = False
        _register(self)
        threading.Thread(target=self._run, name="brain-ckpt-mirror", daemon=True).start()

    def notify(self, retention: Retention | None = None, newest_s: float = 0.0) -> None:
        """Look for new checkpoints, then delete from the mirror what a retention does not keep.

        Parameters
        ----------
        retention : Retention, optional
            What to keep there.
        newest_s : float
            The time of the newest checkpoint that it was meant for; it is applied once the mirror
            has that one, or a newer one.
        """
        with self._changed:
            if retention is not None:
                self._upkeep.add(retention, newest_s)
            self._requested += 1
            self._changed.notify_all()

    def waiting(self, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
        """Return those checkpoints of the directory that are to be uploaded."""
        with self._changed:
            return [
                one
                for one in checkpoints
                if one.commit_id is not None
                and one.commit_id not in self._commits
                and one.commit_id not in self._left_out
                and ckpt_recency(one) > self._oldest_s
            ]

    def saw(self, listing: MirrorListing) -> None:
        """Take note of a listing: what it names need not be uploaded."""
        with self._changed:
            self._commits |= set(listing.by_commit())

    def continue_after(self, number: int) -> None:
        """Take note of the last publication that this run has read, unless it has made one."""
        self._publisher.continue_after(number)

    def raise_error(self) -> None:
        """Raise the error that ended the thread, if there is one."""
        if self._error is not None:
            raise type(self._error)(str(self._error))

    def drain(self, seconds: float) -> bool:
        """Wait until everything is uploaded; return False if that takes longer than asked."""
        with self._changed:
            self._is_hurried, self._failures = True, 0
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._done >= self._requested or self._error is not None, max(0.0, seconds)
            )
            self._is_hurried = False
            return self._done >= self._requested

    def end(self) -> None:
        """End the thread once everything is uploaded."""
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()

    def stop(self) -> None:
        """End the thread after the request that is under way; what is missing stays missing."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()

    def finish_at_exit(self) -> None:
        """Wait for the last upload, and log what is missing."""
        if not self.drain(self._grace_s) and self._error is None:
            logger.warning(
                "Not all checkpoints were copied to %s within %g seconds; %s still has them",
                self._store.shown,
                self._grace_s,
                self._root,
            )
        self.stop()

    def _run(self) -> None:
        lower_thread_priority()
        self._workers = Workers(_REQUESTS_AT_A_TIME)
        try:
            while True:
                self._wait(None)
                self._attempt()
        except _StoppedError:
            pass
        except CheckpointLockedError as error:
            logger.error("%s", error)  # noqa: TRY400 - no traceback
            self._error = error
        except BaseException as error:
            logger.exception("The upload to %s has failed", self._store.shown)
            self._error = CheckpointError(f"the upload to {self._store.shown} has failed: {error}")
            raise
        finally:
            _running.discard(self)
            self._workers.close()
            with self._changed:
                self._changed.notify_all()

    def _attempt(self) -> None:
        """Do what is most urgent."""
        self._attempted = self._requested
        try:
            is_finished = self._step()
        except CheckpointMirrorError as error:
            self._failures += 1
            pause = min(pause_s(self._failures), _HURRIED_S if self._is_hurried else math.inf)
            is_shown = self._failures & (self._failures - 1) == 0  # 1, 2, 4, 8, …
            logger.log(
                logging.WARNING if is_shown else logging.DEBUG,
                "%s (attempt %d, the next one in %.1f s; training continues)",
                error,
                self._failures,
                pause,
            )
            self._wait(pause)
            return
        except _OthersAreBusyError:
            self._wait(_LOOK_EVERY_S)
            return
        except CheckpointGoneError:
            return
        if self._failures:
            logger.info("%s can be reached again", self._store.shown)
        self._failures = 0
        if is_finished:
            with self._changed:
                self._done = self._attempted
                self._changed.notify_all()

    def _step(self) -> bool:
        """Upload one checkpoint, or apply the retention; return whether nothing is left to do."""
        checkpoints = self.waiting(list_published(self._root).checkpoints)
        self._leave_out(checkpoints)
        order = upload_order(self.waiting(checkpoints), self._mirrored, self._upkeep.policies())
        if not order:
            self._apply_retention()
            return True
        try:
            self._upload(order[0])
        except (CheckpointMirrorError, CheckpointLockedError, CheckpointGoneError):
            raise
        except (CheckpointError, OSError) as error:
            logger.error("%s is not copied to %s: %s", order[0].path, self._store.shown, error)  # noqa: TRY400 - no traceback
            self._left_out.add(order[0].commit_id)
            return False
        self._apply_retention()
        return False

    def _upload(self, checkpoint: Checkpoint) -> None:
        started = time.monotonic()
        manifest_text, meta_text, manifest = read_local(checkpoint.path)
        if manifest.commit_id != checkpoint.commit_id:
            raise CheckpointGoneError(f"{checkpoint.path} was replaced before it was copied")
        if self._share.publishes or self._share.is_divided(manifest):
            is_own = self._share.files_of(manifest)
            self._part_started = started
            upload_parts(self._store, checkpoint.path, manifest, is_own, self._pause, self._workers)
        if self._share.publishes:
            if missing_parts(self._store, manifest):
                if self._share.is_divided(manifest):
                    raise _OthersAreBusyError
                raise UnavailableError(f"parts of {checkpoint.path.name} are missing in the mirror")
            self._publisher.publish(checkpoint.path.name, manifest_text, meta_text, manifest)
            logger.info(
                "Copied checkpoint %s to %s (%.1f s)",
                checkpoint.path.name,
                self._store.shown,
                time.monotonic() - started,
            )
        with self._changed:
            self._commits.add(manifest.commit_id)
        self._mirrored.append(checkpoint)
        self._upkeep.has_uploaded = True

    def _leave_out(self, waiting: Sequence[Checkpoint]) -> None:
        """Give up what the mirror would not keep, and what is least urgent if too much waits."""
        for one in self._upkeep.superfluous(waiting, self._mirrored):
            self._left_out.add(one.commit_id)
            logger.info(
                "%s is not copied to %s, which would not keep it: newer ones have been saved",
                one.path.name,
                self._store.shown,
            )
        waiting = self.waiting(waiting)
        for one in choose_left_out(waiting, self._mirrored, self._upkeep.policies()):
            self._left_out.add(one.commit_id)
            logger.warning(
                "%s is not copied to %s: uploads are slower than saves, and newer or more "
                "important checkpoints wait",
                one.path.name,
                self._store.shown,
            )

    def _apply_retention(self) -> None:
        if not self._share.publishes:
            return
        mirrored = self._upkeep.apply(self._mirrored, self._check_stop)
        if mirrored is not None:
            self._mirrored = mirrored

    def _pause(self, size: int) -> None:
        """Leave the processor to training after a part, unless the run or a newer save waits."""
        del size
        took = time.monotonic() - self._part_started
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._is_stopping
                    or self._is_hurried
                    or self._is_ending
                    or self._requested > self._attempted
                ),
                took * _PAUSE_PER_PART,
            )
        self._check_stop()
        self._part_started = time.monotonic()

    def _check_stop(self) -> None:
        if self._is_stopping:
            raise _StoppedError

    def _wait(self, seconds: float | None) -> None:
        """Wait so long, or until there is something to do."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._is_stopping
                    or (seconds is None and self._done < self._requested)
                    or (self._is_ending and self._done >= self._requested)
                    or (seconds is not None and seconds > _HURRIED_S and self._is_hurried)
                ),
                seconds,
            )
            if self._is_ending and self._done >= self._requested:
                raise _StoppedError
        self._check_stop()


def _register(uploader: Uploader) -> None:
    if not _running:
        atexit.unregister(_finish_all)
        atexit.register(_finish_all, os.getpid())
    _running.add(uploader)


def _finish_all(pid: int) -> None:
    """Wait for the last uploads when the interpreter exits."""
    for uploader in list(_running) if pid == os.getpid() else []:
        uploader.finish_at_exit()
