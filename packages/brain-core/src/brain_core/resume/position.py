"""The training data, opened at the position of the checkpoint."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from brain_core.loop.epoch_pass import EpochPass
from brain_core.loop.stage_loader import needs_reading_again

if TYPE_CHECKING:
    from collections.abc import Iterator

    from brain_core.resume.run_state import RunState

__all__ = ["open_training_pass"]

logger = logging.getLogger(__name__)


@contextmanager
def open_training_pass(
    train_set: Any, run: RunState, *, limit: int | None, **pass_options: Any
) -> Iterator[EpochPass]:
    """Open a training pass at a run's position, with the generators as they were saved there.

    Parameters
    ----------
    train_set : loader
        Gives the batches.
    run : RunState
        The position. Its ``epoch_pass`` is the pass until the block ends.
    limit : int, optional
        Batches of the whole epoch, those that are done included.
    **pass_options
        Further arguments of `EpochPass`.
    """
    done = run.step
    if done == 0:
        run.rank_state.restore_rng()  # saved between epochs, before the iterator's draw
    epoch_pass = EpochPass(
        train_set,
        mean=run.mean,
        figure="train_loss",
        done=done,
        limit=None if limit is None else max(0, limit - done),
        **pass_options,
    )
    if done and needs_reading_again(train_set):
        logger.info("This loader cannot seek: its first %d batches are read again.", done)
        epoch_pass.skip(done)
    run.rank_state.restore_rng()  # saved within an epoch, after that draw
    run.epoch_pass = epoch_pass
    try:
        with epoch_pass:
            yield epoch_pass
    finally:
        run.epoch_pass = None
