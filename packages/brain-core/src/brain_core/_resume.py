"""What a run needs besides its modules and optimizers to go on exactly."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from brain_ckpt import RNGState
from brain_dist import get_world_size

from ._losses import LossMean

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Progress", "RankState"]


@dataclass(kw_only=True)
class Progress:
    """How far a training has come, all of it consumed: nothing here counts what is prefetched.

    Attributes
    ----------
    step : int
        Batches of the epoch under way.
    optimizer_step : int
        Accumulation windows since training began.
    epoch : int, optional
        The epoch under way, or the last one.
    world_size : int
        Ranks that ``step`` batches were done on, each.
    loss_total, loss_count : float, int
        Sum and number of the epoch's finite losses, over all ranks.
    nonfinite_count : int
        Batches of the epoch with a non-finite loss or gradient.
    avg_train_loss : float
        Mean of rank 0's losses. SpeechBrain reads this one.
    micro_batches_per_step : int, optional
        Batches of all ranks to an optimizer step; None where the checkpoint does not say.
    grad_accumulation_factor : int, optional
        The option that the run was started with.
    window_batches : int
        Batches of an accumulation window that was not complete; their gradients are not saved.
    """

    step: int = 0
    optimizer_step: int = 0
    epoch: int | None = None
    world_size: int = 1
    loss_total: float = 0.0
    loss_count: int = 0
    nonfinite_count: int = 0
    avg_train_loss: float = 0.0
    micro_batches_per_step: int | None = None
    grad_accumulation_factor: int | None = None
    window_batches: int = 0

    def to_yaml(self) -> str:
        """Write as SpeechBrain does, with what it does not know beside what it does."""
        import yaml  # where a checkpoint is written or read, not where this is imported

        return yaml.safe_dump(asdict(self))

    @classmethod
    def from_yaml(cls, text: str) -> Progress:
        """Read what `to_yaml` or SpeechBrain wrote."""
        import yaml  # as above

        saved: dict[str, Any] = yaml.safe_load(text)
        saved.setdefault("optimizer_step", saved["step"])  # SpeechBrain before 1.0 had none
        if "loss_count" not in saved:
            saved["loss_count"] = saved["step"]
            saved["loss_total"] = saved["avg_train_loss"] * saved["step"]
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in saved.items() if key in known})


class RankState:
    """What each rank has of its own: its random state and its share of the epoch's losses.

    It is put back not when it is loaded but when the loop says so. Making a loader's iterator
    draws from torch's generator; within an epoch the state was saved after that draw, so it has
    to be put back after the draw too.

    Parameters
    ----------
    losses : callable
        Returns the epoch's `LossMean` on this rank.
    environment : callable
        Returns what this rank runs on, by name.

    Attributes
    ----------
    saved_environment : dict or None
        What the rank ran on whose state was loaded last; None where that is not known.
    """

    def __init__(
        self, losses: Callable[[], LossMean], environment: Callable[[], dict[str, Any]] = dict
    ) -> None:
        self._losses = losses
        self._environment = environment
        self.saved_environment: dict[str, Any] | None = None
        self._rng: dict[str, Any] | None = None
        self._saved_losses: LossMean | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state now."""
        losses = self._losses()
        return {
            "world_size": get_world_size(),
            "loss_total": losses.total,
            "loss_count": losses.count,
            "rng": RNGState().state_dict(),
            "environment": self._environment(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the state for later. On another number of ranks, losses are not this rank's."""
        self._rng = state["rng"]
        self.saved_environment = state.get("environment")
        if state["world_size"] == get_world_size():
            self._saved_losses = LossMean(state["loss_total"], state["loss_count"])

    @property
    def holds_rng(self) -> bool:
        """Whether a random state was loaded and not put back yet."""
        return self._rng is not None

    def restore_rng(self) -> None:
        """Put the generators into the state that was loaded last, if it was not done yet."""
        if self._rng is not None:
            RNGState().load_state_dict(self._rng)
        self._rng = None

    def take_losses(self) -> LossMean | None:
        """Return the losses that were loaded last, once."""
        losses, self._saved_losses = self._saved_losses, None
        return losses
