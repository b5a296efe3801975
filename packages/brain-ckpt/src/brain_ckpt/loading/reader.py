"""Choose a checkpoint on one rank; verify and restore it on all ranks."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from brain_ckpt.errors import CheckpointDamagedError, CheckpointError, NoIntactCheckpointError
from brain_ckpt.loading.restore import (
    RestoreStep,
    prepare_restore,
    read_checked_states,
    required_names,
)
from brain_ckpt.ranks.agreement import gather_results, run_on_first_rank
from brain_ckpt.retention.checkpoint import Checkpoint
from brain_ckpt.storage.listing import Listing
from brain_ckpt.storage.verify import verify
from brain_dist import get_rank, raise_on_all_ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from brain_ckpt.ranks.shared_directory import SharedDirectory
    from brain_ckpt.recoverables.registry import Recoverable
    from brain_ckpt.retention.selection import CheckpointQuery

logger = logging.getLogger(__name__)

# How often to list again after a running training has deleted the chosen checkpoint.
_MAX_ATTEMPTS = 5


class Reader:
    """Restores checkpoints from one directory.

    Parameters
    ----------
    directory : SharedDirectory
        The directory.

    Attributes
    ----------
    passed_over : list of str
        The damage in newer checkpoints that the last recovery tried or could not list.
    """

    def __init__(self, directory: SharedDirectory) -> None:
        self.passed_over: list[str] = []
        self._directory = directory
        self._root = directory.root

    def listing(self) -> Listing:
        """List the checkpoints; log a warning for each unreadable one."""
        listing = self._directory.store.listing()
        for path, reason in listing.unreadable.items():
            logger.warning("Skipped %s: %s", path, reason)
        return listing

    def recover(
        self,
        query: CheckpointQuery,
        recoverables: Sequence[Recoverable],
        *,
        partial: bool,
        trusted: bool,
    ) -> Checkpoint | None:
        """Restore the best intact checkpoint; every rank calls it.

        Parameters
        ----------
        query : CheckpointQuery
            Which checkpoints to consider, and which is best.
        recoverables : sequence of Recoverable
            The objects to restore.
        partial, trusted : bool
            As in `prepare_restore`.

        Returns
        -------
        Checkpoint or None
            The restored checkpoint; None if there is none.
        """
        self.passed_over = []
        for _ in range(_MAX_ATTEMPTS):
            listing = self._matching(query)
            if not listing.checkpoints and not listing.unreadable:
                logger.info("No checkpoint found in %s", self._root)
                return None
            problems = list(listing.unreadable.values())
            for candidate in listing.checkpoints:
                try:
                    self.load(candidate, recoverables, partial=partial, trusted=trusted)
                except (CheckpointDamagedError, FileNotFoundError) as error:  # noqa: PERF203 - few
                    if self._is_gone(candidate):
                        break
                    if not query.is_by_time or isinstance(error, FileNotFoundError):
                        raise
                    logger.error("%s; trying the next older checkpoint", error)  # noqa: TRY400 - no traceback
                    problems.append(str(error))
                else:
                    self.passed_over = problems
                    return candidate
            else:
                raise NoIntactCheckpointError(
                    f"{self._root} must hold an intact checkpoint, got only damaged ones: "
                    f"{'; '.join(problems)}; restore a copy, or empty the directory to start "
                    f"from the beginning"
                )
        raise CheckpointError(
            f"checkpoints must not be deleted while they are read, got {_MAX_ATTEMPTS} deletions "
            f"in {self._root}; keep more checkpoints in the run that writes there"
        )

    def load(
        self,
        checkpoint: Checkpoint,
        recoverables: Sequence[Recoverable],
        *,
        partial: bool,
        trusted: bool,
    ) -> None:
        """Verify and read a checkpoint completely, then restore it; every rank calls it."""
        steps = self._prepare(checkpoint, recoverables, partial=partial, trusted=trusted)

        # One object at a time on all ranks: a hook can contain a collective, and would wait for a
        # rank that failed in an earlier step.
        by_name = {step.name: step for step in steps}
        for one in recoverables:
            step = by_name.get(one.name)
            error: BaseException | None = None
            try:
                if step is not None:
                    step.apply()
            except BaseException as caught:  # noqa: BLE001 - raised on all ranks
                error = caught
            raise_on_all_ranks(error)
        logger.info("Loaded checkpoint %s", checkpoint.path)

    def _matching(self, query: CheckpointQuery) -> Listing:
        self._directory.reconcile_nodes()
        common = self._directory.common_names()

        def list_matching() -> Listing:
            self._directory.clean_up_if_unlocked()
            listing = self.listing()
            matching = query.best_first(listing.checkpoints)
            if common is not None:
                matching = [one for one in matching if one.path.name in common]
            return Listing(matching, listing.unreadable, listing.seq)

        return run_on_first_rank(list_matching)

    def _is_gone(self, checkpoint: Checkpoint) -> bool:
        # A running training deleted it during the read; objects restored so far are restored again.
        return run_on_first_rank(lambda: not checkpoint.path.is_dir())

    def _on_this_node(self, checkpoint: Checkpoint) -> Checkpoint:
        path = self._root / checkpoint.path.name
        if self._directory.nodes().shared or not path.is_dir():
            return checkpoint
        files = {name: path / file.name for name, file in checkpoint.paramfiles.items()}
        return Checkpoint(path, checkpoint.meta, files)

    def _prepare(
        self,
        checkpoint: Checkpoint,
        recoverables: Sequence[Recoverable],
        *,
        partial: bool,
        trusted: bool,
    ) -> list[RestoreStep]:
        checkpoint = self._on_this_node(checkpoint)
        steps: list[RestoreStep] = []

        def verify_and_read() -> str | None:
            required = [] if partial else required_names(recoverables)
            states = read_checked_states(checkpoint, recoverables)
            manifest = verify(checkpoint, required, trusted=trusted, checked=states)
            steps.extend(
                prepare_restore(
                    checkpoint, recoverables, get_rank(), states, partial=partial, trusted=trusted
                )
            )
            return None if manifest is None else manifest.commit_id

        commit_ids = gather_results(verify_and_read)
        if len(set(commit_ids)) > 1:
            raise CheckpointDamagedError(
                f"every rank must load the same checkpoint, got {commit_ids!r} from "
                f"{checkpoint.path} in rank order; use a file system that all nodes share"
            )
        return steps
