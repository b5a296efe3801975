"""The methods that a recipe fills in: two that it must define, and hooks that do nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from brain_core.stage import Stage

__all__ = ["BrainHooks"]


class BrainHooks:
    """The methods of `Brain` that a recipe fills in."""

    def compute_forward(self, batch: Any, stage: Stage) -> Any:
        """Return the predictions for a batch. Must be overridden.

        Parameters
        ----------
        batch : object
            What the loader gave.
        stage : Stage
            Which pass this is.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define compute_forward(self, batch, stage), which returns "
            "the model's predictions for a batch."
        )

    def compute_objectives(self, predictions: Any, batch: Any, stage: Stage) -> torch.Tensor:
        """Return the loss of predictions: one element, in `Stage.TRAIN` with a gradient.

        Must be overridden.

        Parameters
        ----------
        predictions : object
            What `compute_forward` returned.
        batch : object
            What the loader gave, with the targets.
        stage : Stage
            Which pass this is.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define compute_objectives(self, predictions, batch, "
            "stage), which returns the loss of a batch, a tensor of one element."
        )

    def loss_weight(self, batch: Any) -> float | torch.Tensor | None:  # noqa: ARG002  # a hook
        """Return the number of samples, or tokens, that a batch's loss is the mean of.

        If overridden, the gradient of a step is that of the mean over all samples (or tokens) of
        all its batches on all ranks: neither a short last batch nor an unequal rank weighs more
        than it should. By default each batch weighs the same, as in SpeechBrain.

        Parameters
        ----------
        batch : object
            What the loader gave.

        Returns
        -------
        float, torch.Tensor or None
            Zero or more. A tensor of one element is not read by the host.
        """
        return None

    def on_stage_start(self, stage: Stage, epoch: int | None = None) -> None:
        """Run before a pass, for instance to create its metrics.

        Parameters
        ----------
        stage : Stage
            Which pass begins.
        epoch : int, optional
            The epoch; None in `Stage.TEST`.
        """

    def on_stage_end(self, stage: Stage, stage_loss: float, epoch: int | None = None) -> None:
        """Run after a pass, for instance to log figures and save a checkpoint.

        Parameters
        ----------
        stage : Stage
            Which pass ended.
        stage_loss : float
            Mean of its finite losses, over all ranks.
        epoch : int, optional
            The epoch; None in `Stage.TEST`.
        """

    def on_fit_batch_start(self, batch: Any, should_step: bool) -> None:
        """Run at the beginning of `fit_batch`, outside of mixed precision.

        Parameters
        ----------
        batch : object
            What the loader gave.
        should_step : bool
            Whether the optimizers will step on this batch.
        """

    def on_fit_batch_end(
        self, batch: Any, outputs: Any, loss: torch.Tensor, should_step: bool
    ) -> None:
        """Run at the end of `fit_batch`, for instance to step a scheduler.

        Parameters
        ----------
        batch : object
            What the loader gave.
        outputs : object
            What `compute_forward` returned.
        loss : torch.Tensor
            What `compute_objectives` returned.
        should_step : bool
            Whether this batch ended an accumulation window, so that the optimizers were due.
        """

    def freeze_optimizers(
        self, optimizers: Mapping[str, torch.optim.Optimizer]
    ) -> Mapping[str, torch.optim.Optimizer]:
        """Return the optimizers that step and are zeroed; by default, all of them.

        Parameters
        ----------
        optimizers : mapping of str to Optimizer
            ``self.optimizers_dict``.
        """
        return optimizers
