"""What a run needs besides its modules and optimizers to go on exactly."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import yaml

from brain_ckpt import RNGState

__all__ = ["PendingRNG", "Progress"]


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
    loss_total, loss_count : float, int
        Sum and number of the epoch's finite losses.
    nonfinite_count : int
        Batches of the epoch with a non-finite loss or gradient.
    avg_train_loss : float
        Their mean. SpeechBrain reads this one.
    """

    step: int = 0
    optimizer_step: int = 0
    epoch: int | None = None
    loss_total: float = 0.0
    loss_count: int = 0
    nonfinite_count: int = 0
    avg_train_loss: float = 0.0

    def to_yaml(self) -> str:
        """Write as SpeechBrain does, with what it does not know beside what it does."""
        return yaml.safe_dump(asdict(self))

    @classmethod
    def from_yaml(cls, text: str) -> Progress:
        """Read what `to_yaml` or SpeechBrain wrote."""
        saved: dict[str, Any] = yaml.safe_load(text)
        saved.setdefault("optimizer_step", saved["step"])  # SpeechBrain before 1.0 had none
        if "loss_count" not in saved:
            saved["loss_count"] = saved["step"]
            saved["loss_total"] = saved["avg_train_loss"] * saved["step"]
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in saved.items() if key in known})


class PendingRNG:
    """Random state of this rank, restored not when it is loaded but when the loop says so.

    Making a loader's iterator draws from torch's generator. Within an epoch the state was saved
    after that draw, so it has to be put back after the draw too.
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the generators' states now."""
        return RNGState().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the states for `restore`."""
        self._state = state

    @property
    def is_pending(self) -> bool:
        """Whether a state was loaded and not put back yet."""
        return self._state is not None

    def restore(self) -> None:
        """Put the generators into the state that was loaded last, if it was not done yet."""
        if self._state is not None:
            RNGState().load_state_dict(self._state)
        self._state = None
