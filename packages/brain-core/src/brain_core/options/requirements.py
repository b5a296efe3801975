"""What `Brain` checks of its arguments where one needs another."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Collection

    from brain_core.options.run_options import RunOptions

__all__ = ["check_checkpointer", "check_has_optimizer", "check_opt_class"]

logger = logging.getLogger(__name__)

# Methods in which a recipe may make or step optimizers that Brain does not know.
_OWN_STEPS = {
    "fit_batch",
    "init_optimizers",
    "on_fit_batch_end",
    "on_fit_batch_start",
    "on_fit_start",
    "optimizers_step",
}


def check_opt_class(opt_class: Any) -> None:
    """Check that ``opt_class`` can be called with parameters.

    Raises
    ------
    TypeError
        For an optimizer, which belongs to parameters already, and for what cannot be called.
    """
    if isinstance(opt_class, torch.optim.Optimizer):
        name = type(opt_class).__name__
        raise TypeError(
            "opt_class must be a class or a function that makes an optimizer of parameters, got an "
            f"optimizer of class {name}. Write opt_class=lambda parameters: {name}(parameters, "
            "...), since modules are moved and wrapped before."
        )
    if opt_class is not None and not callable(opt_class):
        raise TypeError(
            "opt_class must be a class or a function that makes an optimizer of parameters, got "
            f"{opt_class!r}. Write opt_class=torch.optim.Adam, or opt_class=lambda parameters: ..."
        )


def check_has_optimizer(
    modules: torch.nn.ModuleDict, optimizers: Collection[Any], overrides: Collection[str]
) -> None:
    """Check that something trains the modules, unless the recipe may do it in a method of its own.

    Parameters
    ----------
    modules : torch.nn.ModuleDict
        The modules.
    optimizers : collection of Optimizer
        All optimizers.
    overrides : collection of str
        The methods that the recipe overrides.

    Raises
    ------
    ValueError
        If there are trainable parameters and no optimizer.
    """
    if optimizers or not _OWN_STEPS.isdisjoint(overrides):
        return
    trainable = [
        name
        for name, module in modules.items()
        if any(p.requires_grad for p in module.parameters())
    ]
    if trainable:
        raise ValueError(
            f"fit needs an optimizer for the trainable parameters of {', '.join(trainable)}, got "
            "no opt_class. Give Brain an opt_class, such as torch.optim.Adam, or override "
            "init_optimizers."
        )


def check_checkpointer(checkpointer: object | None, options: RunOptions) -> None:
    """Check that there is a checkpointer for the options that need one.

    Raises
    ------
    ValueError
        For an option that would have no effect and whose user relies on it: ``resume_from`` and
        ``mirror``. An interval is a warning in the log: recipes have one in their hyperparameters.
    """
    if checkpointer is not None:
        return
    required = "needs a checkpointer, got none. Give Brain checkpointer=Checkpointer(folder), or"
    for name in ("resume_from", "mirror"):
        value = getattr(options, name)
        if value is not None:
            raise ValueError(f"{name}={value!r} {required} leave {name} out.")
    for name in ("ckpt_interval_steps", "ckpt_interval_minutes"):
        value = getattr(options, name)
        if value > 0:
            logger.warning("%s=%s %s set it to 0: nothing is saved.", name, value, required)
