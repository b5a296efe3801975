"""The same micro-batches in every optimizer step, on another number of ranks."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._resume import Progress

__all__ = ["StepSize"]

logger = logging.getLogger(__name__)


class StepSize:
    """How many micro-batches of all ranks make an optimizer step.

    Parameters
    ----------
    world_size : int
        The number of ranks.
    asked : int
        The accumulation factor that the run was started with.

    Attributes
    ----------
    saved : int or None
        What a checkpoint of another step size had, kept to go back to; None where it is the same.
    """

    def __init__(self, world_size: int, asked: int) -> None:
        self.saved: int | None = None
        self._world_size = world_size
        self._asked = asked

    def now(self, factor: int) -> int:
        """Return what a checkpoint says, at the present accumulation factor."""
        return self._world_size * factor if self.saved is None else self.saved

    def recover(self, progress: Progress, *, elastic: bool) -> int | None:
        """Return the accumulation factor that keeps the steps of a checkpoint as they were.

        Parameters
        ----------
        progress : Progress
            What the checkpoint says.
        elastic : bool
            Go on with steps of about that size where the same cannot be had.

        Returns
        -------
        int or None
            None where the one that was asked for stands: the checkpoint does not know, or another
            was asked for since, which is somebody's decision.

        Raises
        ------
        ValueError
            If the number of ranks does not divide the micro-batches of a step, unless `elastic`.
        """
        self.saved = None
        size = progress.micro_batches_per_step
        if size is None or progress.grad_accumulation_factor != self._asked:
            return None
        factor, rest = divmod(size, self._world_size)
        if not rest:
            if factor != self._asked:
                logger.info(
                    "grad_accumulation_factor is %d for a world size of %d: an optimizer step "
                    "takes the same %d micro-batches as before.",
                    factor,
                    self._world_size,
                    size,
                )
            return factor
        if not elastic:
            raise ValueError(
                f"A number of ranks that divides the {size} micro-batches of an optimizer step is "
                f"required to go on with the same steps, got {self._world_size}. Start "
                f"{_listed(size)} of them, or write --elastic: what is left is dealt out in steps "
                "of about that size, and no sample is repeated or left out."
            )
        factor = max(1, round(size / self._world_size))
        self.saved = size
        logger.warning(
            "An optimizer step takes %d micro-batches from here on, and took %d: %d ranks cannot "
            "share those. grad_accumulation_factor is %d.",
            factor * self._world_size,
            size,
            self._world_size,
            factor,
        )
        return factor

    def batches_done(self, progress: Progress, factor: int) -> int:
        """Return a checkpoint's place in its epoch in batches of each of the present ranks."""
        done = -(-progress.step * progress.world_size // self._world_size)
        # Of the same size, steps end where they did; else the next one begins here.
        return done if self.saved is None else -(-done // factor) * factor


def _listed(size: int) -> str:
    *others, last = [str(n) for n in range(1, size + 1) if size % n == 0]
    return f"{', '.join(others)} or {last}" if others else last
