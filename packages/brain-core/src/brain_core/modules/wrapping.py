"""Wrapping a Brain's modules for several ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain_dist import BucketOrder, unwrap_module, wrap_modules

if TYPE_CHECKING:
    from collections.abc import Collection

    import torch

    from brain_ckpt import Checkpointer
    from brain_core.modules.container import Modules
    from brain_core.options.run_options import RunOptions

__all__ = ["trainable_parameters", "wrap_for_ranks"]


def trainable_parameters(modules: torch.nn.Module) -> frozenset[int]:
    """Return the ids of the trainable parameters."""
    return frozenset(id(p) for p in modules.parameters() if p.requires_grad)


def wrap_for_ranks(
    modules: Modules,
    options: RunOptions,
    device: str,
    checkpointer: Checkpointer | None,
    names: Collection[str],
) -> BucketOrder:
    """Wrap modules in place, and add DDP's bucket order to the checkpoints.

    DDP shares the gradients of those parameters that are trainable when it wraps a module. A module
    of which others were unfrozen since is wrapped anew.

    On three ranks or more a resumed run sums gradients as before only once that order is applied.

    Parameters
    ----------
    modules : Modules
        What is wrapped.
    options : RunOptions
        ``parallel`` and ``find_unused_parameters`` are used.
    device : str
        Where the modules are.
    checkpointer : Checkpointer, optional
        Gets the order.
    names : collection of str
        The modules that the recipe has not wrapped itself.
    """
    if options.parallel == "ddp":
        for name in names:
            modules[name] = unwrap_module(modules[name])
    wrap_modules(
        modules,
        parallel=options.parallel,
        device=device,
        find_unused_parameters=options.find_unused_parameters,
    )
    order = BucketOrder(modules)
    if order.modules and checkpointer is not None:
        checkpointer.add_recoverable("gradient_order", order, optional_load=True)
    return order
