"""Wrapping a Brain's modules for several ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain_dist import BucketOrder, wrap_modules

if TYPE_CHECKING:
    from brain_ckpt import Checkpointer
    from brain_core.modules.container import Modules
    from brain_core.options.run_options import RunOptions

__all__ = ["wrap_for_ranks"]


def wrap_for_ranks(
    modules: Modules, options: RunOptions, device: str, checkpointer: Checkpointer | None
) -> BucketOrder:
    """Wrap modules in place, and add DDP's bucket order to the checkpoints.

    On three ranks or more a resumed run sums gradients as before only once that order is applied.
    """
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
