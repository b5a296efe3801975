"""Wrapping a Brain's modules for several ranks, and again when other parameters are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from brain_dist import (
    BucketOrder,
    is_distributed_initialized,
    reshard,
    sync_trainable,
    unwrap_module,
    wrap_modules,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    import torch

    from brain_ckpt import Checkpointer
    from brain_core.modules.container import Modules
    from brain_core.options.run_options import RunOptions

__all__ = ["RankWrapping", "named_parameters"]

_OF_A_BATCH = ("fit_batch", "on_fit_batch_start", "on_fit_batch_end", "update_average")


class RankWrapping:
    """Keeps modules wrapped for several ranks while hooks freeze, unfreeze and run them.

    DDP shares the gradients of those parameters that are trainable when it wraps a module, and
    waits for them. FSDP2 shards modules that have trainable parameters. After a change, modules are
    wrapped anew.

    Parameters
    ----------
    modules : Modules
        What is wrapped in place. Those that the recipe has wrapped itself stay as they are.
    options : RunOptions
        ``parallel`` and ``find_unused_parameters`` are used.
    device : str
        Where the modules are.
    checkpointer : Checkpointer, optional
        Gets DDP's bucket order: on three ranks or more a resumed run sums gradients as before only
        once it is applied.

    Attributes
    ----------
    order : BucketOrder or None
        Of DDP; None before the modules are wrapped.
    """

    def __init__(
        self,
        modules: Modules,
        options: RunOptions,
        device: str,
        checkpointer: Checkpointer | None,
    ) -> None:
        self._modules = modules
        self._options = options
        self._device = device
        self._checkpointer = checkpointer
        self._unwrapped = [name for name, m in modules.items() if unwrap_module(m) is m]
        self._trainable: frozenset[str] | None = None
        self.order: BucketOrder | None = None

    def wrap(self, optimizers: Iterable[Any] = ()) -> None:
        """Wrap the modules, unless those parameters are trainable that were when it was done.

        Parameters
        ----------
        optimizers : iterable of torch.optim.Optimizer
            Get the parameters that FSDP2 puts in place of those that they hold.
        """
        trainable = frozenset(n for n, p in named_parameters(self._modules) if p.requires_grad)
        if trainable == self._trainable:
            return
        self._trainable = trainable
        if self._options.parallel == "ddp":
            for name in self._unwrapped:
                self._modules[name] = unwrap_module(self._modules[name])
        before = dict(named_parameters(self._modules))
        wrap_modules(
            self._modules,
            parallel=self._options.parallel,
            device=self._device,
            find_unused_parameters=self._options.find_unused_parameters,
        )
        sync_trainable(self._modules)
        _replace(optimizers, before, dict(named_parameters(self._modules)))
        self.order = BucketOrder(self._modules)
        if self.order.modules and self._checkpointer is not None:
            self._checkpointer.add_recoverable("gradient_order", self.order, optional_load=True)

    def is_needed_after_batch(self, overrides: Collection[str]) -> bool:
        """Return whether hooks of a batch could change the modules, so that `after_hook` is due."""
        return is_distributed_initialized() and any(name in overrides for name in _OF_A_BATCH)

    def after_hook(self, optimizers: Iterable[Any] = ()) -> None:
        """Undo what a forward in a hook has gathered, and wrap if it has unfrozen parameters."""
        if is_distributed_initialized():
            reshard(self._modules)
            self.wrap(optimizers)


def named_parameters(modules: Modules) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield all parameters with names that do not depend on wrappers."""
    for name, module in modules.items():
        for path, parameter in unwrap_module(module).named_parameters():
            yield f"{name}.{path}", parameter


def _replace(
    optimizers: Iterable[Any],
    before: dict[str, torch.nn.Parameter],
    after: dict[str, torch.nn.Parameter],
) -> None:
    new = {id(p): after[name] for name, p in before.items() if after.get(name) is not p}
    for optimizer in optimizers if new else ():
        for group in optimizer.param_groups:
            group["params"][:] = [new.get(id(p), p) for p in group["params"]]
