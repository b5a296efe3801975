"""What each rank saves for itself: its generators and its losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from brain_ckpt import RNGState
from brain_core.loop.running_mean import LossMean
from brain_core.resume.attributes import AttributeState
from brain_core.resume.environment import differences
from brain_dist import get_world_size

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RankState"]

_FITS_REMEMBERED = 64  # about 16 kB each


class RankState:
    """The state that each rank has for itself: its generators and its losses of the epoch.

    Generators are restored not when a state is loaded but when `restore_rng` is called. Making a
    loader's iterator draws from torch's generator. Within an epoch the state is saved after that
    draw, so it is restored after the draw as well.

    Parameters
    ----------
    losses : callable
        Returns the epoch's `LossMean` on this rank.
    environment : callable
        Returns the software and hardware of this rank, by name.
    rng_after_fits : dict, optional
        The generators' states at the end of each call of `Brain.fit`, by its number. A script may
        draw from the generators between two calls.
    attributes : AttributeState, optional
        What the recipe keeps in attributes.

    Attributes
    ----------
    attributes : AttributeState
        What the recipe keeps in attributes.
    saved_environment : dict or None
        The software and hardware that the loaded state was saved on; None where it is not known.
    """

    def __init__(
        self,
        losses: Callable[[], LossMean],
        environment: Callable[[], dict[str, Any]] = dict,
        rng_after_fits: dict[int, dict[str, Any]] | None = None,
        attributes: AttributeState | None = None,
    ) -> None:
        self._losses = losses
        self.attributes = attributes or AttributeState()
        self._rng_after_fits = {} if rng_after_fits is None else rng_after_fits
        self._environment = environment
        self.saved_environment: dict[str, Any] | None = None
        self._rng: dict[str, Any] | None = None
        self._saved_losses: LossMean | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the present state."""
        losses = self._losses()
        return {
            "world_size": get_world_size(),
            "loss_total": losses.total,
            "loss_count": losses.count,
            "rng": RNGState().state_dict(),
            "environment": self._environment(),
            "rng_after_fits": dict(self._rng_after_fits),
            "attributes": self.attributes.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep a state for later; losses of another number of ranks are not kept."""
        self._rng = state["rng"]
        self.saved_environment = state.get("environment")
        self._rng_after_fits.clear()
        self._rng_after_fits.update(state.get("rng_after_fits", {}))
        self.attributes.load_state_dict(state.get("attributes", {"values": {}, "left_out": []}))
        if state["world_size"] == get_world_size():
            self._saved_losses = LossMean(state["loss_total"], state["loss_count"])

    @property
    def holds_rng(self) -> bool:
        """Whether generator states were loaded and not restored yet."""
        return self._rng is not None

    def changed_environment(self) -> list[str]:
        """Return what differs between this rank and the one that saved the loaded state."""
        saved = self.saved_environment
        return [] if saved is None else differences(saved, self._environment())

    def restore_rng(self) -> None:
        """Restore the generators from the state that was loaded last, once."""
        if self._rng is not None:
            RNGState().load_state_dict(self._rng)
        self._rng = None

    def fit_ended(self, fit: int) -> None:
        """Remember the generators' states at the end of a call of `Brain.fit`."""
        self.restore_rng()  # nothing was left to train
        self._rng_after_fits[fit] = RNGState().state_dict()
        while len(self._rng_after_fits) > _FITS_REMEMBERED:
            del self._rng_after_fits[min(self._rng_after_fits)]

    def restore_rng_after(self, fit: int) -> None:
        """Restore the generators as they were at the end of a call of `Brain.fit`, if known."""
        self._rng = self._rng_after_fits.get(fit)
        self.restore_rng()

    def pop_losses(self) -> LossMean | None:
        """Return the losses that were loaded last, once."""
        losses, self._saved_losses = self._saved_losses, None
        return losses
