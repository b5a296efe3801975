"""The same micro-batches in every optimizer step, on another number of ranks."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from brain_core.resume.run_state import Progress

__all__ = ["StepSize"]

logger = logging.getLogger(__name__)


class StepSize:
    """The number of micro-batches, of all ranks, in an optimizer step.

    Parameters
    ----------
    world_size : int
        The number of ranks.
    requested : int
        The accumulation factor that the run was started with.

    Attributes
    ----------
    saved : int or None
        The size that a checkpoint of another step size had, which later checkpoints keep; None
        where it is the same.
    """

    def __init__(self, world_size: int, requested: int) -> None:
        self.saved: int | None = None
        self._world_size = world_size
        self._requested = requested

    def to_save(self, factor: int) -> int:
        """Return the size that a checkpoint holds, at the given accumulation factor."""
        return self._world_size * factor if self.saved is None else self.saved

    def recover(self, progress: Progress, *, elastic: bool) -> int | None:
        """Return the accumulation factor that keeps the steps of a checkpoint as they were.

        Parameters
        ----------
        progress : Progress
            What the checkpoint holds.
        elastic : bool
            Continue with steps of about that size where the same size is impossible.

        Returns
        -------
        int or None
            None to use the option as given: the checkpoint does not hold one, or the option was
            changed since.

        Raises
        ------
        ValueError
            If the number of ranks does not divide the micro-batches of a step, unless `elastic`.
        """
        self.saved = None
        size = progress.micro_batches_per_step
        if size is None or progress.grad_accumulation_factor != self._requested:
            return None
        factor, rest = divmod(size, self._world_size)
        if not rest:
            if factor != self._requested:
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
                f"required to continue with the same steps, got {self._world_size}. Start "
                f"{_listed(size)} ranks, or write --elastic: the rest of the epoch is sharded in "
                "steps of about that size, and no sample is repeated or left out."
            )
        factor = max(1, round(size / self._world_size))
        self.saved = size
        logger.warning(
            "An optimizer step takes %d micro-batches from here on, and took %d: %d ranks cannot "
            "share %d evenly. grad_accumulation_factor is %d.",
            factor * self._world_size,
            size,
            self._world_size,
            size,
            factor,
        )
        return factor

    def batches_done(self, progress: Progress, factor: int) -> int:
        """Return a checkpoint's position in its epoch, in batches of each present rank."""
        done = -(-progress.step * progress.world_size // self._world_size)
        # Steps of the same size end where they did; otherwise the next step begins here.
        return done if self.saved is None else -(-done // factor) * factor


def _listed(size: int) -> str:
    *others, last = [str(n) for n in range(1, size + 1) if size % n == 0]
    return f"{', '.join(others)} or {last}" if others else last
