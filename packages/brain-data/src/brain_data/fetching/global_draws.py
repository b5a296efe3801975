"""The draws of samplers from the global generators, and how they continue after a restart."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from brain_data.order.generator_states import capture_global, restore_global

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from brain_data.fetching.position import Position


class GlobalDraws:
    """The global generators, as the samplers of a loader draw from them.

    A caller that restores the global generators after a restart gets from them what the samplers
    would have drawn without it. For one that does not, the orders of later passes are drawn from
    the saved states instead, as if nothing else had drawn from them.

    Attributes
    ----------
    begin : dict or None
        The states from which the order of the present pass was drawn.
    """

    def __init__(self) -> None:
        self.begin: dict[str, Any] | None = None
        self._present: dict[str, Any] | None = None  # instead of the global ones
        self._draws_base_seed: bool | None = None  # of the pass after a loaded state

    @property
    def is_own(self) -> bool:
        """Whether orders are drawn from saved states."""
        return self._present is not None

    def present(self) -> dict[str, Any]:
        """Return the states from which the next pass draws."""
        return capture_global(devices=False) if self._present is None else self._present

    def load(self, state: dict[str, Any]) -> None:
        """Draw from saved states, until the caller has restored the global ones."""
        self.begin = state.get("begin")
        self._present = state.get("present")
        self._draws_base_seed = state.get("draws_base_seed")

    def forget(self) -> None:
        """Draw from the global generators from now on."""
        self._present = self._draws_base_seed = None

    def forget_if_restored(self, *, draws_base_seed: bool | None = None) -> None:
        """Draw from the global generators from now on if they are as they were saved.

        With ``draws_base_seed``, only if torch's loader draws as many seeds as without a restart.
        """
        if self._present is None or (
            draws_base_seed is not None and draws_base_seed != self._draws_base_seed
        ):
            return
        if self._present == capture_global(devices=False):
            self.forget()

    @contextmanager
    def drawing(self, *, resumes: bool, draws_base_seed: bool) -> Iterator[None]:
        """Let a block draw the order of a pass.

        Parameters
        ----------
        resumes
            Whether it is a pass that had begun before the restart: its order is drawn again.
        draws_base_seed
            Whether torch's loader draws the seed of its workers before the order.
        """
        source = self.begin if resumes else self._present
        outside = capture_global(devices=False)
        if source is None or (resumes and source == outside):
            self.begin = outside
            yield
            return
        restore_global(source)
        try:
            if resumes:
                yield
                return
            if draws_base_seed if self._draws_base_seed is None else self._draws_base_seed:
                torch.empty((), dtype=torch.int64).random_()
            self._draws_base_seed = None
            self.begin = capture_global(devices=False)
            yield
            self._present = capture_global(devices=False)
        finally:
            restore_global(outside)

    @staticmethod
    def unchanged(resume: Position | None, *, had_begun: bool) -> AbstractContextManager[None]:
        """Keep torch's generator in a block, where the pass drew its base seed before the restart.

        A loop that restores the generators itself, before it makes the iterator, then continues
        with the numbers that it would have drawn without the restart.
        """
        has_drawn = had_begun and resume is not None and not resume.is_start
        return torch.random.fork_rng(devices=[], enabled=has_drawn)


class CheckedIterator:
    """Batches, with a call before the first of them."""

    __slots__ = ("_batches", "_check")

    def __init__(self, batches: Any, check: Callable[[], None]) -> None:
        self._batches = batches
        self._check: Callable[[], None] | None = check

    def __iter__(self) -> CheckedIterator:
        """Return itself."""
        return self

    def __next__(self) -> Any:
        """Return the next batch."""
        if self._check is not None:
            self._check()
            self._check = None
        return next(self._batches)

    def __len__(self) -> int:
        """Return the number of batches in the epoch, on this rank."""
        return len(self._batches)


def base_seed_generator(saved: dict[str, Any], *, had_begun: bool) -> torch.Generator | None:
    """Return what to draw the seed of new workers from, so that nothing else changes.

    Workers that persist have drawn it in an earlier pass. None if the resumed pass has drawn it.
    """
    return None if had_begun and saved.get("draws_base_seed", True) else torch.Generator()
