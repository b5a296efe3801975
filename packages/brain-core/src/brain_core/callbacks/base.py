"""The base class of callbacks."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    import torch

    from brain_core.brain import Brain
    from brain_core.stage import Stage

__all__ = ["Callback"]


class Callback:
    """Something that a `Brain` calls as it trains; all methods of this class do nothing.

    Give callbacks to ``Brain(..., callbacks=[...])``. They are called in the order of the list,
    each time after the Brain's own hook. A method that no callback overrides costs nothing.

    A callback that has ``state_dict`` and ``load_state_dict`` is added to the checkpoints. Its
    state has to say all that `on_stage_start` and later calls have done, because what was done
    before the checkpoint is not done again.

    Attributes
    ----------
    belongs_to_model : bool
        Whether `Brain.evaluate` restores the state together with the model's weights. Otherwise
        only `Brain.fit` restores it.

    Examples
    --------
    >>> class PrintLoss(Callback):
    ...     def on_stage_end(self, brain, stage, stats, epoch):
    ...         print(epoch, stage.name, stats["loss"])
    """

    belongs_to_model = False

    def on_fit_start(self, brain: Brain, *, is_resumed: bool) -> None:
        """Run when `fit` has made optimizers and restored the newest checkpoint.

        Parameters
        ----------
        brain : Brain
            What is trained.
        is_resumed : bool
            Whether the checkpoint belongs to this call of `fit`. Otherwise counts that belong to a
            call of `fit` begin anew.
        """

    def on_stage_start(self, brain: Brain, stage: Stage, epoch: int | None) -> None:
        """Run before a pass; not again where training resumes inside the epoch.

        Parameters
        ----------
        brain : Brain
            What is trained or evaluated.
        stage : Stage
            Which pass begins.
        epoch : int or None
            The epoch; None in `Stage.TEST`.
        """

    def watch_batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Return an iterator that gives the same batches of a training pass, for instance timed.

        Parameters
        ----------
        batches : iterator
            The batches that are left in the epoch.
        """
        return batches

    def on_fit_batch_end(self, brain: Brain, batch: Any, loss: torch.Tensor) -> None:
        """Run after each `fit_batch`, but for padding batches.

        Parameters
        ----------
        brain : Brain
            What is trained.
        batch : object
            What the loader gave.
        loss : torch.Tensor
            What `fit_batch` returned. Reading it waits for the device.
        """

    def on_optimizer_step(self, brain: Brain, *, is_taken: bool) -> None:
        """Run after each accumulation window, after `on_fit_batch_end`.

        Also called after a `fit_batch` of a recipe's own that steps an optimizer.

        Parameters
        ----------
        brain : Brain
            What is trained.
        is_taken : bool
            Whether parameters changed; False where the step was skipped because a gradient was not
            finite.
        """

    def during_evaluation(self, brain: Brain, stage: Stage) -> AbstractContextManager[object]:  # noqa: ARG002  # a hook
        """Return a context in which all batches of a validation or a test are evaluated.

        Parameters
        ----------
        brain : Brain
            What is evaluated.
        stage : Stage
            `Stage.VALID` or `Stage.TEST`.
        """
        return nullcontext()

    def stage_figures(self, brain: Brain, stage: Stage) -> Mapping[str, Any]:  # noqa: ARG002  # a hook
        """Return figures of a pass that ends; they are added to ``brain.stage_stats``.

        Called before the Brain's `on_stage_end`, on every rank.

        Parameters
        ----------
        brain : Brain
            What is trained or evaluated.
        stage : Stage
            Which pass ends.
        """
        return {}

    def on_stage_end(
        self, brain: Brain, stage: Stage, stats: Mapping[str, Any], epoch: int | None
    ) -> None:
        """Run after a pass, after the Brain's `on_stage_end`.

        Parameters
        ----------
        brain : Brain
            What is trained or evaluated.
        stage : Stage
            Which pass ended.
        stats : mapping of str to object
            ``brain.stage_stats``: ``loss``, the mean over all ranks, and what the recipe and other
            callbacks have added.
        epoch : int or None
            The epoch; None in `Stage.TEST`.
        """

    def on_fit_end(self, brain: Brain) -> None:
        """Run when `fit` has trained its last epoch; not if it is stopped or raises.

        Parameters
        ----------
        brain : Brain
            What was trained.
        """
