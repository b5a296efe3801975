"""The copies of a directory's checkpoints in a mirror, as the ranks of one run use them."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
import weakref
from typing import TYPE_CHECKING

from brain_ckpt.errors import (
    CheckpointDamagedError,
    CheckpointError,
    CheckpointGoneError,
    CheckpointLockedError,
    NoIntactCheckpointError,
)
from brain_ckpt.mirror.download import download, is_here
from brain_ckpt.mirror.listing import MirrorLister, MirrorListing
from brain_ckpt.mirror.objects import ObjectStore, UnavailableError
from brain_ckpt.mirror.publish import Publisher, check_writable
from brain_ckpt.mirror.retries import retry
from brain_ckpt.mirror.share import Share
from brain_ckpt.mirror.uploader import Uploader
from brain_ckpt.ranks.agreement import run_on_all_ranks, run_on_first_rank
from brain_ckpt.retention.checkpoint import ckpt_recency
from brain_ckpt.retention.policies import any_of
from brain_ckpt.retention.selection import Retention
from brain_ckpt.storage.lock import DirectoryLock
from brain_dist import World, get_rank, get_world_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from brain_ckpt.mirror.upkeep import Rules
    from brain_ckpt.ranks.shared_directory import SharedDirectory
    from brain_ckpt.retention.checkpoint import Checkpoint
    from brain_ckpt.retention.policies import Policy
    from brain_ckpt.retention.selection import CheckpointQuery

logger = logging.getLogger(__name__)

# Requests at the start of a run, before a bucket that cannot be reached is an error.
_ATTEMPTS_AT_START = 4
_ATTEMPTS = 5
# How many checkpoints to try, damaged or deleted meanwhile, before giving up.
_MAX_ATTEMPTS = 50
_MAX_POSTPONED = 64


class Copies:
    """The mirror of one directory.

    Parameters
    ----------
    url : str
        The URL of the mirror.
    directory : SharedDirectory
        The directory.
    rules : Rules
        What to keep in the mirror.
    grace_seconds : float
        How long the end of a run waits for the last upload.

    Raises
    ------
    CheckpointMirrorError
        If the mirror cannot be used; the text says what to correct.
    """

    def __init__(
        self, url: str, directory: SharedDirectory, rules: Rules, grace_seconds: float
    ) -> None:
        self.passed_over: list[str] = []
        self._directory = directory
        self._rules = rules
        self._store = ObjectStore(url)
        self.shown = self._store.shown
        self._lister = MirrorLister(self._store)
        self._grace_s = self._budget_s = check_grace(grace_seconds)
        self._uploader: Uploader | None = None
        self._repaired: set[str | None] = set()
        self._postponed: list[Retention] = []
        self._listing = self._list(_ATTEMPTS_AT_START)
        self._last_number = self._listing.last_number  # that this run has read or made
        if get_rank() == 0:
            retry(lambda: check_writable(self._store), _ATTEMPTS_AT_START)

    def start(self) -> None:
        """Start to upload; every rank calls it, and the directory is locked by this run."""
        if self._uploader is not None:
            return
        shared = self._directory.nodes().shared
        world = World.from_environment()
        share = Share(get_rank(), get_world_size(), world.local_world_size, shared)
        if share.uploads:
            publisher = Publisher(self._store, self._last_number)
            self._uploader = Uploader(
                self._store,
                self._directory.root,
                self._lister,
                publisher,
                share,
                self._rules,
                self._listing,
                self._grace_s,
            )
            weakref.finalize(self, self._uploader.end).atexit = False

    def saved(self, retention: Retention | None) -> Retention | None:
        """Upload what was published, then apply a retention there; every rank calls it.

        Returns
        -------
        Retention or None
            The retention for the checkpoints of now, which can be applied later in both places.
        """
        listing = self._directory.store.listing() if get_rank() == 0 else None
        newest_s = 0.0
        if retention is not None and listing is not None and listing.checkpoints:
            newest_s = ckpt_recency(listing.checkpoints[-1])
            retention = _until(newest_s, retention)
            self._postponed = [*self._postponed, retention][-_MAX_POSTPONED:]
        self.start()
        if self._uploader is not None:
            self._uploader.notify(retention, newest_s)
        return retention

    def take_postponed(self) -> list[Retention]:
        """Return the retentions that were applied while checkpoints waited for their upload.

        Every rank gets as many.
        """
        postponed, self._postponed = self._postponed, []
        count = run_on_first_rank(lambda: len(postponed))
        return postponed or [Retention()] * count

    def raise_error(self) -> None:
        """Raise the error that ended the uploads of this rank."""
        if self._uploader is not None:
            self._uploader.raise_error()

    def poll(self) -> None:
        """Raise the error that ended the uploads, in a run of one rank; training continues."""
        self._budget_s = self._grace_s
        if get_world_size() == 1 and self._uploader is not None:
            self._uploader.raise_error()

    def kept_here(self, also_keep: Policy | None) -> Policy | None:
        """Return a policy that keeps checkpoints in the directory until they are uploaded."""
        uploader = self._uploader
        if uploader is None:
            return also_keep

        def keep_waiting(checkpoints: Sequence[Checkpoint], /) -> list[bool]:
            waiting = {one.path for one in uploader.waiting(checkpoints)}
            return [one.path in waiting for one in checkpoints]

        return keep_waiting if also_keep is None else any_of(also_keep, keep_waiting)

    def finish(self) -> None:
        """Wait for the last upload, at most the grace time in all since training went on.

        Every rank calls it, and waits for the others.

        Raises
        ------
        CheckpointLockedError
            If another run has published to the mirror.
        """
        run_on_all_ranks(self._finish)

    def stop(self) -> None:
        """End the uploads; a later `start` continues."""
        if self._uploader is not None:
            self._uploader.stop()
            self._uploader = None

    def fetch(self, query: CheckpointQuery) -> None:
        """Download the best checkpoint, unless it is here; every rank calls it.

        Parameters
        ----------
        query : CheckpointQuery
            Which checkpoint is best, of those in both places.

        Raises
        ------
        NoIntactCheckpointError
            If both places have none that is intact, and the mirror has damaged ones.
        CheckpointMirrorError
            If the mirror cannot be read.
        """
        self.passed_over = []
        damaged: set[str | None] = set()
        for _ in range(_MAX_ATTEMPTS):
            chosen, problems = self._choose_one(query, damaged)
            if chosen is None:
                problems += self.passed_over
                if problems:
                    raise NoIntactCheckpointError(
                        f"{self.shown} must hold an intact checkpoint, got only damaged ones: "
                        f"{'; '.join(problems)}; name another mirror to start from the beginning"
                    )
                return
            try:
                self._download_on_leaders(chosen)
            except CheckpointGoneError:
                continue
            except CheckpointDamagedError as error:
                if not query.is_by_time:
                    raise
                logger.error("%s; trying the next older checkpoint", error)  # noqa: TRY400 - no traceback
                self.passed_over.append(str(error))
                damaged.add(chosen)
            else:
                return
        raise CheckpointError(
            f"checkpoints must not be deleted while they are downloaded, got {_MAX_ATTEMPTS} "
            f"attempts in {self.shown}; keep more checkpoints in the run that writes there"
        )

    def fetch_here(self, query: CheckpointQuery, count: int | None) -> None:
        """Download the best checkpoints on the first rank, without the others.

        Damaged ones are logged and skipped.
        """
        if get_rank() != 0:
            return
        for commit in self._choose(query, count, set())[0]:
            try:
                self._download(commit)
            except (CheckpointDamagedError, CheckpointGoneError) as error:  # noqa: PERF203 - few
                logger.error("%s", error)  # noqa: TRY400 - no traceback

    def fetch_one(self, checkpoint: Checkpoint) -> None:
        """Download a listed checkpoint, unless it is here; every rank calls it."""
        if run_on_first_rank(lambda: not checkpoint.path.is_dir()):
            self._download_on_leaders(checkpoint.commit_id)

    def repair(self, checkpoint: Checkpoint) -> bool:
        """Replace a damaged checkpoint with its copy in the mirror; every rank calls it.

        Returns
        -------
        bool
            Whether it was replaced; then it is worth another try.
        """
        commit = checkpoint.commit_id
        if commit is None or commit in self._repaired:
            return False
        self._repaired.add(commit)
        if not run_on_first_rank(lambda: commit in self._list_or_last().by_commit()):
            return False
        try:
            self._download_on_leaders(commit, replace=True)
        except CheckpointError as error:
            logger.error("%s", error)  # noqa: TRY400 - no traceback
            return False
        logger.warning(
            "%s was damaged, and is replaced with its copy in %s", checkpoint.path, self.shown
        )
        return True

    def only_there(self, here: Sequence[Checkpoint]) -> list[Checkpoint]:
        """Return the checkpoints that only the mirror has; their files are not here."""
        commits = {one.commit_id for one in here}
        listed = self._list_or_last().checkpoints(self._directory.root)
        return [one for one in listed if one.commit_id not in commits]

    def _finish(self) -> None:
        if self._uploader is None and get_world_size() == 1 and self._has_new():
            with contextlib.suppress(CheckpointLockedError):
                self._directory.lock()
                self.start()
        if self._uploader is None:
            return
        started = time.monotonic()
        is_done = self._uploader.drain(self._budget_s)
        self._budget_s = max(0.0, self._budget_s - (time.monotonic() - started))
        self._uploader.raise_error()
        if not is_done:
            self.stop()
            logger.warning(
                "Not all checkpoints were copied to %s within %g seconds; %s still has them, and "
                "the next run in this directory copies them (or: brain-ckpt push)",
                self.shown,
                self._grace_s,
                self._directory.root,
            )

    def _has_new(self) -> bool:
        """Return whether an earlier run here has not uploaded its newest checkpoint."""
        here = self._directory.store.listing().checkpoints
        there = self._listing.checkpoints(self._directory.root)
        newest_s = max(map(ckpt_recency, there), default=float("-inf"))
        return any(one.commit_id and ckpt_recency(one) > newest_s for one in here)

    def _choose(
        self, query: CheckpointQuery, count: int | None, damaged: set[str | None]
    ) -> tuple[list[str | None], list[str]]:
        """Return the commit ids of the best, and what is unreadable in the mirror."""
        here = self._directory.store.listing()
        listing = self._list_or_last()
        for key, reason in listing.unreadable.items():
            logger.warning("Skipped %s/%s: %s", self.shown, key, reason)
        names = {one.commit_id for one in here.checkpoints}
        there = listing.checkpoints(self._directory.root)
        there = [one for one in there if one.commit_id not in names | damaged]
        best = query.best_first([*here.checkpoints, *there])[:count]
        has_any = bool(here.checkpoints or here.unreadable or there)
        problems = [] if has_any else list(listing.unreadable.values())
        return [one.commit_id for one in best], problems

    def _choose_one(
        self, query: CheckpointQuery, damaged: set[str | None]
    ) -> tuple[str | None, list[str]]:
        """Choose what this run resumes from: it continues after all that it has seen."""

        def choose() -> tuple[list[str | None], list[str]]:
            chosen = self._choose(query, 1, damaged)
            self._last_number = self._listing.last_number
            if self._uploader is not None:
                self._uploader.continue_after(self._last_number)
            return chosen

        chosen, problems = run_on_first_rank(choose)
        return (chosen[0] if chosen else None), problems

    def _download_on_leaders(self, commit: str | None, *, replace: bool = False) -> None:
        self._directory.nodes().run_on_leaders(lambda: self._download(commit, replace=replace))

    def _download(self, commit: str | None, *, replace: bool = False) -> None:
        entry = self._list_or_last().by_commit().get(commit or "")
        root = self._directory.root
        if entry is None or (is_here(entry, root) and not replace):
            return
        with self._locked():
            started = time.monotonic()
            download(self._store, entry, self._directory.store)
            self._directory.store.clean_up()
        seconds = time.monotonic() - started
        logger.info("Copied checkpoint %s from %s (%.1f s)", entry.name, self.shown, seconds)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = DirectoryLock(self._directory.root, self._directory.store.run_id)
        holder = lock.acquire()
        if holder is not None:
            raise CheckpointLockedError(
                f"only one process may copy checkpoints to {self._directory.root}, got a second "
                f"one while it is written by {holder}; use another directory for this process"
            )
        try:
            yield
        finally:
            lock.release()

    def _list(self, attempts: int) -> MirrorListing:
        self._listing = self._lister.list(lambda request: retry(request, attempts))
        if self._uploader is not None:
            self._uploader.saw(self._listing)
        return self._listing

    def _list_or_last(self) -> MirrorListing:
        """List the mirror; if it is away, return what it held last: training continues."""
        try:
            return self._list(_ATTEMPTS)
        except UnavailableError as error:
            logger.warning("%s; using what the mirror held before", error)
            return self._listing


def _until(newest_s: float, retention: Retention) -> Retention:
    """Return a retention that does not apply to checkpoints after a time."""
    predicate = retention.ckpt_predicate

    def applies(checkpoint: Checkpoint) -> bool:
        is_old = ckpt_recency(checkpoint) <= newest_s
        return is_old and (predicate is None or predicate(checkpoint))

    return dataclasses.replace(retention, ckpt_predicate=applies)


def check_grace(seconds: object) -> float:
    """Return the grace time.

    Raises
    ------
    ValueError
        If it is not a number of seconds, zero or more.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds >= 0:
        raise ValueError(
            f"mirror_grace_seconds must be a number of seconds, 0 or more, got {seconds!r}; "
            f"write for example 120"
        )
    return float(seconds)
