"""Calls callbacks in order, and only where one overrides the method."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from brain_core.callbacks.base import Callback
from brain_core.fit_state import find_overrides
from brain_core.stateful import is_stateful, named_by_class

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import torch

    from brain_ckpt import Checkpointer
    from brain_core.stage import Stage

__all__ = ["CallbackRunner", "StepCount"]


class CallbackRunner:
    """The callbacks of a Brain.

    Parameters
    ----------
    callbacks : iterable of Callback
        Called in this order.
    brain : object
        Passed to them.

    Raises
    ------
    TypeError
        If one of them is no `Callback`.
    """

    def __init__(self, callbacks: Iterable[Callback], brain: Any) -> None:
        self.callbacks = tuple(callbacks)
        self._brain = brain
        self._steps = StepCount()
        for callback in self.callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(
                    f"callbacks must hold objects of subclasses of Callback, got {callback!r}."
                    + (" Make an object of the class." if isinstance(callback, type) else "")
                )

    def add_to(self, checkpointer: Checkpointer) -> None:
        """Add those that have a state to the checkpoints."""
        known = {id(obj) for obj in checkpointer.recoverables.values()}
        stateful = named_by_class(one for one in self.callbacks if is_stateful(one))
        for name, callback in stateful.items():
            if id(callback) not in known:
                checkpointer.add_recoverable(f"callback-{name}", callback, optional_load=True)

    @property
    def states_of_the_model(self) -> list[Any]:
        """The callbacks whose states belong to the model."""
        return [
            one for one in self.callbacks if one.belongs_to_model and hasattr(one, "state_dict")
        ]

    @contextmanager
    def during_fit(self, *, is_resumed: bool) -> Iterator[None]:
        """Call `on_fit_start` and, unless an exception ends the fit, `on_fit_end`."""
        try:
            for callback in self.callbacks:
                callback.on_fit_start(self._brain, is_resumed=is_resumed)
            yield
            for callback in self.callbacks:
                callback.on_fit_end(self._brain)
        finally:
            self._steps.close()

    def on_stage_start(self, stage: Stage, epoch: int | None) -> None:
        """Call them before a pass."""
        for callback in self.callbacks:
            callback.on_stage_start(self._brain, stage, epoch)

    def stage_figures(self, stage: Stage) -> dict[str, Any]:
        """Return what they have measured in a pass."""
        figures: dict[str, Any] = {}
        for callback in self.callbacks:
            figures.update(callback.stage_figures(self._brain, stage))
        return figures

    def on_stage_end(self, stage: Stage, stats: Mapping[str, Any], epoch: int | None) -> None:
        """Call them after a pass."""
        for callback in self.callbacks:
            callback.on_stage_end(self._brain, stage, stats, epoch)

    @contextmanager
    def during_evaluation(self, stage: Stage) -> Iterator[None]:
        """Enter their contexts while batches are evaluated."""
        with ExitStack() as stack:
            for callback in self.callbacks:
                stack.enter_context(callback.during_evaluation(self._brain, stage))
            yield

    def watcher_of_batches(self) -> Callable[[Iterator[Any]], Iterator[Any]] | None:
        """Return a function that wraps the iterator of a training pass; None if none wants to."""
        watching = self._overriding("watch_batches")
        if not watching:
            return None

        def watch(batches: Iterator[Any]) -> Iterator[Any]:
            for callback in watching:
                batches = callback.watch_batches(batches)
            return batches

        return watch

    def around_batch(
        self,
        train_batch: Callable[[Any, Any], torch.Tensor | None],
        windows: Callable[[], int],
        was_taken: Callable[[], bool],
        optimizers: Iterable[torch.optim.Optimizer],
    ) -> Callable[[Any, Any], torch.Tensor | None]:
        """Return ``train_batch`` followed by the callbacks; itself if none wants to be called.

        Parameters
        ----------
        train_batch : callable
            Trains on a batch of a pass and returns the loss, or None for a padding batch.
        windows : callable
            Returns the number of accumulation windows so far.
        was_taken : callable
            Returns whether the last window's step was taken.
        optimizers : iterable of Optimizer
            Those that may step.
        """
        after_batch = self._overriding("on_fit_batch_end")
        after_step = self._overriding("on_optimizer_step")
        if not (after_batch or after_step):
            return train_batch
        brain, steps = self._brain, self._steps
        steps.watch(optimizers)

        def train_batch_with_callbacks(batch: Any, epoch_pass: Any) -> torch.Tensor | None:
            before, steps.taken = windows(), 0
            loss = train_batch(batch, epoch_pass)
            if loss is not None:
                for callback in after_batch:
                    callback.on_fit_batch_end(brain, batch, loss)
            if steps.taken or windows() > before:
                is_taken = was_taken() and (steps.taken > 0 or steps.is_blind)
                for callback in after_step:
                    callback.on_optimizer_step(brain, is_taken=is_taken)
            return loss

        return train_batch_with_callbacks

    def _overriding(self, method: str) -> list[Callback]:
        return [one for one in self.callbacks if method in find_overrides(type(one), Callback)]


class StepCount:
    """Counts the steps that optimizers take, also in a recipe's own `fit_batch`.

    Attributes
    ----------
    taken : int
        Steps since it was last set to 0.
    is_blind : bool
        Whether an optimizer, one that is not torch's, cannot be watched.
    """

    def __init__(self) -> None:
        self.taken = 0
        self.is_blind = False
        self._watched: dict[int, tuple[Any, Any]] = {}  # the optimizer lives as long as its id

    def watch(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Count the steps of these, too."""
        for optimizer in optimizers:
            if not hasattr(optimizer, "register_step_post_hook"):
                self.is_blind = True
            elif id(optimizer) not in self._watched:
                handle = optimizer.register_step_post_hook(self._count)
                self._watched[id(optimizer)] = optimizer, handle

    def close(self) -> None:
        """Count no more."""
        for _, handle in self._watched.values():
            handle.remove()
        self._watched.clear()

    def _count(self, *_: Any) -> None:
        self.taken += 1
