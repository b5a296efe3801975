"""A loop that restores the random generators itself, before it begins the resumed pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from data_helpers import USES_WORKERS

from brain_data import ReproducibleRandomSampler, SaveableDataLoader

pytestmark = USES_WORKERS
ROWS = range(20)
ORDERS: dict[str, Any] = {
    "sampler": lambda: {"sampler": ReproducibleRandomSampler(ROWS)},
    "shuffle": lambda: {"shuffle": True},
}


class Loop:
    """Draws a number with each batch, as dropout does."""

    def __init__(self, order: str, workers: int) -> None:
        torch.manual_seed(0)
        self.loader = SaveableDataLoader(ROWS, batch_size=2, num_workers=workers, **ORDERS[order]())
        self.epoch = 0

    def run(self, stop_after: int | None = None) -> list[tuple[list[int], float]]:
        """Train to the end of three epochs, or for some batches."""
        seen: list[tuple[list[int], float]] = []
        for epoch in range(self.epoch, 3):
            self.epoch = epoch
            self.loader.set_epoch(self.epoch)
            for batch in self.loader:
                seen.append((batch.tolist(), torch.rand(()).item()))
                if len(seen) == stop_after:
                    return seen
        return seen

    def state_dict(self) -> dict[str, Any]:
        """Return the position, the epoch and torch's generator."""
        generator = torch.get_rng_state()
        return {"loader": self.loader.state_dict(), "epoch": self.epoch, "generator": generator}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.loader.load_state_dict(state["loader"])
        self.epoch = state["epoch"]
        torch.set_rng_state(state["generator"])


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("stop_after", [1, 9, 10, 14])
def test_it_draws_on_as_without_the_restart(order: str, workers: int, stop_after: int) -> None:
    """torch's loader draws a seed where a pass begins, which the resumed pass has drawn before."""
    whole = Loop(order, workers).run()
    first = Loop(order, workers)
    begun, state = first.run(stop_after), first.state_dict()
    second = Loop(order, workers)
    second.load_state_dict(state)
    assert begun + second.run() == whole
