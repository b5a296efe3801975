"""A training logger for Weights & Biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from brain_core.loggers.base import MainProcessLogger, Stats
from brain_dist import if_main_process

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["WandBLogger"]


class WandBLogger(MainProcessLogger):
    """Send figures to Weights & Biases; needs ``brain-core[wandb]``.

    The run is made when figures are logged, a checkpoint is saved or `run` is read for the first
    time. Checkpoints hold its id, and a run that is restarted goes on in it: the initializer then
    gets ``id`` and ``resume``. Figures of an epoch that is trained again are those that are there
    already; W&B ignores steps that it has. What W&B's own process has not written when the job is
    killed is lost there.

    Parameters
    ----------
    initializer : callable
        Makes the run on the main process, for instance ``wandb.init``.
    *args, **kwargs
        Passed to it.
    """

    def __init__(self, initializer: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._initializer = initializer
        self._args, self._kwargs = args, kwargs
        self._run: Any = None
        self._id: str | None = None

    @property
    def run(self) -> Any:
        """The run of W&B; None on other processes than the main one.

        Raises
        ------
        RuntimeError
            If the run cannot be made; the cause is attached.
        """
        if self._run is None and if_main_process():
            again = {} if self._id is None else {"id": self._id, "resume": "allow"}
            try:
                self._run = self._initializer(*self._args, **{**self._kwargs, **again})
            except Exception as error:
                raise RuntimeError(
                    f"WandBLogger needs a run from its initializer, which raised {error!r}."
                    + (" It has to take id and resume, as wandb.init does." if again else "")
                ) from error
            self._id = getattr(self._run, "id", None)
        return self._run

    def state_dict(self) -> dict[str, Any]:
        """Return the id of the run."""
        return {"id": self._id if self.run is None else getattr(self.run, "id", None)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on in the run that was saved; one that was made in this process is finished."""
        if state["id"] is None or state["id"] == self._id:
            return
        if self._run is not None:
            self._run.finish()
            self._run = None
        self._id = state["id"]

    def _write(self, meta: Stats, sets: Mapping[str, Stats]) -> dict[str, Any]:
        """Send the figures under the epoch's number."""
        figures = {name: dict(stats) for name, stats in sets.items()}
        self.run.log({**figures, **meta}, step=meta.get("epoch"))
        return dict(meta)
