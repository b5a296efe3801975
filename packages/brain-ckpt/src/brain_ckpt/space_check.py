"""Check before a run that its checkpoints fit on the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain_ckpt.ranks.agreement import gather_results, run_on_first_rank
from brain_ckpt.saving.space import check_fits, free_space, warn_if_full

if TYPE_CHECKING:
    from brain_ckpt.checkpointer import Checkpointer


def check_space(checkpointer: Checkpointer, kept: int = 1) -> None:
    """Check that the next checkpoint fits on the disk; every rank calls it.

    The size is estimated from the tensors of the recoverables.  A quota of the user is not known.

    Parameters
    ----------
    checkpointer : Checkpointer
        The checkpointer, with its recoverables.
    kept : int
        How many checkpoints will be kept.  One more is there while the next one is written, and
        as many more as the checkpointer's ``spare``.

    Raises
    ------
    CheckpointSaveError
        On every rank, if one checkpoint does not fit.  If those that are kept will not, a warning
        is logged.
    """
    # Sizes of other ranks are the same; a state that is read on all ranks may communicate.
    size_bytes = gather_results(checkpointer.estimate_bytes)[0]

    def check() -> None:
        free_bytes = free_space(checkpointer.checkpoints_dir)
        if free_bytes is not None:
            existing = len(checkpointer.list_checkpoints())
            missing = kept + checkpointer.spare + 1 - existing
            check_fits(checkpointer.checkpoints_dir, size_bytes, free_bytes)
            warn_if_full(checkpointer.checkpoints_dir, size_bytes, missing, free_bytes)

    run_on_first_rank(check)
