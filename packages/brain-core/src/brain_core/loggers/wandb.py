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

    Parameters
    ----------
    initializer : callable
        Makes the run on the main process, for instance ``wandb.init``.
    *args, **kwargs
        Passed to it.

    Raises
    ------
    RuntimeError
        If the run cannot be made; the cause is attached.
    """

    def __init__(self, initializer: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.run: Any = None
        if if_main_process():
            try:
                self.run = initializer(*args, **kwargs)
            except Exception as error:
                raise RuntimeError(
                    f"WandBLogger needs a run from its initializer, which raised {error!r}."
                ) from error

    def _write(self, meta: Stats, sets: Mapping[str, Stats]) -> dict[str, Any]:
        """Send the figures under the epoch's number."""
        assert self.run is not None, "main_process_only lets only the owner of the run in"
        figures = {name: dict(stats) for name, stats in sets.items()}
        self.run.log({**figures, **meta}, step=meta.get("epoch"))
        return dict(meta)
