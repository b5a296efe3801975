"""Choose a checkpoint on one rank; verify and restore it on all ranks."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING

from brain_ckpt.errors import (
    CheckpointDamagedError,
    CheckpointError,
    CheckpointGoneError,
    NoIntactCheckpointError,
)
from brain_ckpt.loading.restore import (
    RestoreStep,
    prepare_restore,
    read_checked_states,
    required_names,
)
from brain_ckpt.ranks.agreement import gather_results, run_on_all_ranks, run_on_first_rank
from brain_ckpt.retention.checkpoint import Checkpoint
from brain_ckpt.storage import filesystem
from brain_ckpt.storage.listing import Listing
from brain_ckpt.storage.opened import Handles, OpenedCheckpoint, Patience, open_checkpoint
from brain_ckpt.storage.verify import verify_opened
from brain_dist import get_rank

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from brain_ckpt.ranks.shared_directory import SharedDirectory
    from brain_ckpt.recoverables.registry import Recoverable
    from brain_ckpt.retention.selection import CheckpointQuery

logger = logging.getLogger(__name__)


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
    repair : callable
        Replaces a damaged checkpoint with a copy from elsewhere; returns whether it did.
    """

    def __init__(self, directory: SharedDirectory) -> None:
        self.passed_over: list[str] = []
        self.repair: Callable[[Checkpoint], bool] = _no_copy
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
        patience = Patience(self._root)
        while True:
            listing = self._matching(query)
            if not listing.checkpoints and not listing.unreadable:
                logger.info("No checkpoint found in %s", self._root)
                return None
            problems = list(listing.unreadable.values())
            for candidate in listing.checkpoints:
                try:
                    self.load(candidate, recoverables, partial=partial, trusted=trusted)
                except CheckpointGoneError:  # noqa: PERF203 - few
                    break
                except (CheckpointDamagedError, FileNotFoundError) as error:
                    if self._is_gone(candidate) or self.repair(candidate):
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
            run_on_first_rank(patience.wait)  # it decides, because ranks have their own clocks

    def load(
        self,
        checkpoint: Checkpoint,
        recoverables: Sequence[Recoverable],
        *,
        partial: bool,
        trusted: bool,
    ) -> None:
        """Verify and read a checkpoint completely, then restore it; every rank calls it."""
        with contextlib.ExitStack() as stack:
            opened, steps = self._prepare(
                checkpoint, recoverables, stack, partial=partial, trusted=trusted
            )
            # One object at a time on all ranks: a hook can contain a collective, and would wait
            # for a rank that failed in an earlier step.
            for one in recoverables:
                step = steps.get(one.name, _NOTHING)
                if one.loader is None:
                    run_on_all_ranks(step.apply)
                elif any(gather_results(lambda step=step: _call_hook(step, opened))):  # type: ignore[misc]  # default arguments of a lambda
                    run_on_all_ranks(lambda step=step: _repeat_hook(step, opened))  # type: ignore[misc]  # as above
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
        # Deleted or replaced while another rank read it.
        def is_gone() -> bool:
            try:
                with open_checkpoint(checkpoint.path) as opened:
                    opened.check_same(checkpoint)
            except CheckpointGoneError:
                return True
            except (CheckpointError, OSError):
                return False
            return False

        return run_on_first_rank(is_gone)

    def _on_this_node(self, checkpoint: Checkpoint) -> Checkpoint:
        path = self._root / checkpoint.path.name
        if self._directory.nodes().shared or not path.is_dir():
            return checkpoint
        files = {name: path / file.name for name, file in checkpoint.paramfiles.items()}
        return Checkpoint(path, checkpoint.meta, files, commit_id=checkpoint.commit_id)

    def _prepare(
        self,
        checkpoint: Checkpoint,
        recoverables: Sequence[Recoverable],
        stack: contextlib.ExitStack,
        *,
        partial: bool,
        trusted: bool,
    ) -> tuple[OpenedCheckpoint, dict[str, RestoreStep]]:
        """Open the checkpoint until `stack` is closed, and read the states of this rank."""
        checkpoint = self._on_this_node(checkpoint)
        prepared: list[tuple[OpenedCheckpoint, dict[str, RestoreStep]]] = []
        held: list[OpenedCheckpoint] = []
        handles = self._hold_on_first_rank(checkpoint, held, stack)

        def verify_and_read() -> str | None:
            opened = held[0] if held else stack.enter_context(self._open(checkpoint.path, handles))
            opened.check_same(checkpoint)
            with opened.reading():
                required = [] if partial else required_names(recoverables)
                states = read_checked_states(opened, recoverables)
                wanted = [one.name for one in recoverables]
                verify_opened(opened, required, trusted=trusted, checked=states, wanted=wanted)
                steps = prepare_restore(
                    opened, recoverables, get_rank(), states, partial=partial, trusted=trusted
                )
                opened.check_unchanged()
            prepared.append((opened, steps))
            return opened.checkpoint.commit_id

        commit_ids = gather_results(verify_and_read)
        if len(set(commit_ids)) > 1:
            raise CheckpointDamagedError(
                f"every rank must load the same checkpoint, got {commit_ids!r} from "
                f"{checkpoint.path} in rank order; use a file system that all nodes share"
            )
        return prepared[0]

    def _hold_on_first_rank(
        self, checkpoint: Checkpoint, held: list[OpenedCheckpoint], stack: contextlib.ExitStack
    ) -> tuple[str | None, Handles]:
        """Open the checkpoint on the first rank; return its handles with its process space."""

        def hold() -> tuple[str | None, Handles]:
            opened = stack.enter_context(open_checkpoint(checkpoint.path, hold=True))
            opened.check_same(checkpoint)
            held.append(opened)
            return filesystem.process_space(), opened.handles

        return run_on_first_rank(hold)

    def _open(
        self, path: Path, first: tuple[str | None, Handles]
    ) -> contextlib.AbstractContextManager[OpenedCheckpoint]:
        """Open the checkpoint that the first rank holds, through its handles if possible."""
        space, handles = first
        is_local = space is not None and space == filesystem.process_space()
        if is_local and self._directory.nodes().shared and os.path.isdir(handles.directory):
            return open_checkpoint(path, through=handles)
        return open_checkpoint(path, hold=True)


def _call_hook(step: RestoreStep, opened: OpenedCheckpoint) -> bool:
    """Call a hook; return whether the checkpoint at the path was replaced meanwhile."""
    try:
        step.apply()
    except Exception:
        if opened.is_current():
            raise
        return True
    return not opened.is_current()


def _repeat_hook(step: RestoreStep, opened: OpenedCheckpoint) -> None:
    with opened.reading():
        step.repeat()
        opened.check_unchanged()


def _do_nothing() -> None:
    pass


def _no_copy(checkpoint: Checkpoint) -> bool:
    del checkpoint
    return False


_NOTHING = RestoreStep(_do_nothing, _do_nothing)
