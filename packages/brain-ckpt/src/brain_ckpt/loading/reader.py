"""Who reads a directory of checkpoints: chooses on one rank, verifies and restores on all."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from brain_ckpt.errors import CheckpointDamagedError, CheckpointError, NoIntactCheckpointError
from brain_ckpt.loading.restore import Step, prepare, read_whole, required_names
from brain_ckpt.ranks.agreement import decide, together
from brain_ckpt.retention.policies import Checkpoint, Key, newest_first
from brain_ckpt.retention.selection import Predicate, choose
from brain_ckpt.storage.listing import Listing
from brain_ckpt.storage.verify import verify
from brain_dist import get_rank, raise_together

if TYPE_CHECKING:
    from collections.abc import Sequence

    from brain_ckpt.saving.files import Item
    from brain_ckpt.saving.writer import Writer

logger = logging.getLogger(__name__)

# How often a reader looks again when a living run deletes what it is about to read.
_LOOKS = 5


class Wanted(NamedTuple):
    """Which checkpoint is wanted; the fields are arguments of `find_checkpoints`."""

    importance_key: Key | None = None
    max_key: str | None = None
    min_key: str | None = None
    ckpt_predicate: Predicate | None = None

    @property
    def newest(self) -> bool:
        """Whether it is the newest, which an older one can stand in for."""
        return not (self.importance_key or self.max_key or self.min_key)

    def best_first(self, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
        """Return those that are meant, the best first."""
        found = choose(checkpoints, *self)
        return newest_first(found) if self.newest else found


class Reader:
    """Restores from one directory.

    Parameters
    ----------
    writer : Writer
        Who writes there, or would.

    Attributes
    ----------
    passed_over : list of str
        What was wrong with those that the last recovery tried, or could not list, before the one
        that it restored.
    """

    def __init__(self, writer: Writer) -> None:
        self.passed_over: list[str] = []
        self._writer = writer
        self._root = writer.store.root

    def listing(self) -> Listing:
        """List what is there, with a warning for each that cannot be read."""
        listing = self._writer.store.listing()
        for path, reason in listing.unreadable.items():
            logger.warning("%s is left out: %s", path, reason)
        return listing

    def recover(
        self, wanted: Wanted, items: Sequence[Item], *, partial: bool, trusted: bool
    ) -> Checkpoint | None:
        """Restore the best intact checkpoint; every rank calls it.

        Parameters
        ----------
        wanted : Wanted
            Which one.
        items : sequence of Item
            What to restore.
        partial, trusted : bool
            As in `prepare`.

        Returns
        -------
        Checkpoint or None
            What was restored; None if there is none.
        """
        self._writer.wait()
        self.passed_over = []
        for _ in range(_LOOKS):
            listing = self._look(wanted)
            if not listing.checkpoints and not listing.unreadable:
                logger.info("no checkpoint in %s yet", self._root)
                return None
            problems = list(listing.unreadable.values())
            for candidate in listing.checkpoints:
                try:
                    self.load(candidate, items, partial=partial, trusted=trusted)
                except (CheckpointDamagedError, FileNotFoundError) as error:  # noqa: PERF203 - few
                    if self._is_gone(candidate):
                        break
                    if not wanted.newest or isinstance(error, FileNotFoundError):
                        raise
                    logger.error("%s; trying the next older checkpoint", error)  # noqa: TRY400 - no traceback wanted
                    problems.append(str(error))
                else:
                    self.passed_over = problems
                    return candidate
            else:
                raise NoIntactCheckpointError(
                    f"{self._root} has to hold an intact checkpoint, got only damaged ones: "
                    f"{'; '.join(problems)}; put a copy back, or empty the directory to start "
                    f"afresh"
                )
        raise CheckpointError(
            f"{self._root} has to hold still while it is read, got checkpoints that were deleted "
            f"{_LOOKS} times; keep more of them in the run that writes there"
        )

    def load(
        self, checkpoint: Checkpoint, items: Sequence[Item], *, partial: bool, trusted: bool
    ) -> None:
        """Verify and read all of a checkpoint, then restore it; every rank calls it."""
        steps = self._prepare(checkpoint, items, partial=partial, trusted=trusted)

        # One after the other: a hook may be one that all ranks run together, and would wait for a
        # rank that has failed in an earlier one.
        by_name = {step.name: step for step in steps}
        for item in items:
            step = by_name.get(item.name)
            error: BaseException | None = None
            try:
                if step is not None:
                    step.apply()
            except BaseException as caught:  # noqa: BLE001 - the other ranks have to hear of it
                error = caught
            raise_together(error)
        logger.info("loaded %s", checkpoint.path)

    def _look(self, wanted: Wanted) -> Listing:
        self._writer.settle()
        common = self._writer.common_names()

        def look() -> Listing:
            self._writer.tidy_if_free()
            listing = self.listing()
            found = wanted.best_first(listing.checkpoints)
            if common is not None:
                found = [one for one in found if one.path.name in common]
            return Listing(found, listing.unreadable, listing.seq)

        return decide(look)

    def _is_gone(self, checkpoint: Checkpoint) -> bool:
        # A living run deleted it while it was read: what was restored of it is restored again.
        return decide(lambda: not checkpoint.path.is_dir())

    def _of_this_node(self, checkpoint: Checkpoint) -> Checkpoint:
        path = self._root / checkpoint.path.name
        if self._writer.nodes().shared or not path.is_dir():
            return checkpoint
        files = {name: path / file.name for name, file in checkpoint.paramfiles.items()}
        return Checkpoint(path, checkpoint.meta, files)

    def _prepare(
        self, checkpoint: Checkpoint, items: Sequence[Item], *, partial: bool, trusted: bool
    ) -> list[Step]:
        checkpoint = self._of_this_node(checkpoint)
        steps: list[Step] = []

        def verify_and_read() -> str | None:
            required = [] if partial else required_names(items)
            read = read_whole(checkpoint, items)
            manifest = verify(checkpoint, required, trusted=trusted, checked=read)
            steps.extend(
                prepare(checkpoint, items, get_rank(), read, partial=partial, trusted=trusted)
            )
            return None if manifest is None else manifest.commit

        commits = together(verify_and_read)
        if len(set(commits)) > 1:
            raise CheckpointDamagedError(
                f"every rank has to load the same checkpoint, got {commits!r} from "
                f"{checkpoint.path} in rank order; use a file system that all nodes share"
            )
        return steps
