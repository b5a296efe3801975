"""Give DDP of a resumed run the gradient buckets that it had before the stop."""

from __future__ import annotations

import functools
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from brain_dist.collectives import ddp_broadcast
from brain_dist.parallel.warm_up import (
    ORDER_MATTERS_FROM,
    preserve_random_state,
    preserve_tensors,
)
from brain_dist.world import get_world_size, is_distributed_initialized

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch.utils.hooks import RemovableHandle

logger = logging.getLogger(__name__)

# Name of a parameter, and whether its gradient is sparse: DDP reduces sparse ones separately.
Order = list[tuple[str, bool]]


class BucketOrder:
    """Makes resuming exact on three ranks or more: keeps the order of DDP's reducer buckets.

    After its first synchronised backward DDP rebuilds its buckets in the order in which the
    gradients became ready on rank 0.  Its second step therefore sums them in another order than
    its first, and the rounding differs.  A resumed run is at its first step again (pytorch issues
    35137 and 44798).  This object records the order in the first synchronised backward, by hooks
    that then remove themselves.  A run that resumes applies the order, so that DDP rebuilds its
    buckets before the first step.  That takes no batch and calls no code of the user's::

        wrap_modules(modules, device=device)
        order = BucketOrder(modules)
        if resuming:
            ...  # load modules, optimizers and so on
            order.load_state_dict(state["order"])
            order.apply()
        ...
        state["order"] = order.state_dict()

    It does nothing in one process, on two ranks (where a sum has one order), under FSDP2, and
    under DDP with ``find_unused_parameters``, which never rebuilds its buckets.  It does not
    support ``static_graph``: use `warm_up_step` for that.

    Parameters
    ----------
    modules : mapping of str to nn.Module
        Those that `wrap_modules` has wrapped, before their first backward.

    Attributes
    ----------
    modules : dict of str to DistributedDataParallel
        Those of them whose order is recorded.
    """

    def __init__(self, modules: Mapping[str, nn.Module] | nn.ModuleDict) -> None:
        self.modules: dict[str, DistributedDataParallel] = {}
        self._recorders: dict[str, _Recorder] = {}
        self._loaded: dict[str, Order] = {}
        if not is_distributed_initialized() or get_world_size() < ORDER_MATTERS_FROM:
            return
        for name, module in modules.items():
            seen = any(module is other for other in self.modules.values())
            if isinstance(module, DistributedDataParallel) and not seen and _has_order(module):
                self.modules[name] = module
                self._recorders[name] = _Recorder(module)

    def state_dict(self) -> dict[str, Order]:
        """Return the orders known so far; save those of rank 0.

        Returns
        -------
        dict of str to list of (str, bool)
            By module; of each trainable parameter the name, and whether its gradient is sparse.
            A loaded order stays in it until the order of that module is recorded.
        """
        recorders = self._recorders.items()
        recorded = {name: list(r.order) for name, r in recorders if r.is_complete}
        return {**self._loaded, **recorded}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep what `state_dict` returned, for `apply`."""
        self._loaded = {
            name: [(parameter, bool(sparse)) for parameter, sparse in order]
            for name, order in state.items()
        }

    def apply(self) -> list[str]:
        """Run a backward of zeros in the loaded order, so that DDP rebuilds its buckets.

        Every rank has to call it, before the first step.  Rank 0's loaded order is used.
        Gradients, buffers and random number generators are restored; hooks on parameters, and on
        DDP's communication, run.

        Returns
        -------
        list of str
            The modules that now sum as before the stop.  A module that has run a backward already
            keeps its order, and one whose parameters are not those of the state gets none: a
            warning says so.
        """
        if not self.modules:
            return []
        self._loaded = ddp_broadcast(self._loaded)
        return [name for name in self.modules if name in self._loaded and self._apply(name)]

    def _apply(self, name: str) -> bool:
        recorder, order = self._recorders[name], self._loaded[name]
        if recorder.is_complete:
            return recorder.order == order
        wrapper = self.modules[name]
        if {key for key, _ in order} != recorder.names:
            logger.warning(
                "The first step of %r may differ in its last bits from that of the saved run, "
                "which trained other parameters: DDP builds its buckets anew.",
                name,
            )
            return False
        with recorder.paused(), preserve_random_state(), preserve_tensors([wrapper]):
            _backward_in_order(wrapper, order)
        recorder.finish(order)
        return True


class _Recorder:
    """Records the order of gradients in one module's first synchronised backward."""

    def __init__(self, wrapper: DistributedDataParallel) -> None:
        self.order: Order = []
        self._wrapper = wrapper
        trainable = [(n, p) for n, p in wrapper.module.named_parameters() if p.requires_grad]
        self.names = {name for name, _ in trainable}
        self._synchronises = False
        self._is_paused = False
        # The forward determines whether the backward after it synchronises.
        self._handles: list[RemovableHandle] = [wrapper.register_forward_hook(self._on_forward)]
        for name, parameter in trainable:
            hook = functools.partial(self._on_gradient, name)
            self._handles.append(parameter.register_post_accumulate_grad_hook(hook))

    @property
    def is_complete(self) -> bool:
        return not self._handles

    def finish(self, order: Order) -> None:
        self.order = list(order)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False

    def _on_forward(self, wrapper: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG002 - torch's interface
        if torch.is_grad_enabled():
            self._synchronises = bool(self._wrapper.require_backward_grad_sync)

    def _on_gradient(self, name: str, parameter: torch.Tensor) -> None:
        if not self._synchronises or self._is_paused or self.is_complete:
            return
        sparse = parameter.grad is not None and parameter.grad.layout != torch.strided
        self.order.append((name, sparse))
        if len(self.order) == len(self.names):
            self.finish(self.order)


def _has_order(wrapper: DistributedDataParallel) -> bool:
    """Return whether DDP rebuilds its buckets after the first backward."""
    return not (wrapper.find_unused_parameters or wrapper.static_graph)


def _backward_in_order(wrapper: DistributedDataParallel, order: Order) -> None:
    inner = wrapper.module
    parameters = dict(inner.named_parameters())
    device = next(iter(parameters.values())).device
    # DDP prepares a backward in its forward: here without the module, and without its buffers.
    wrapper.module, wrapper.require_forward_param_sync = nn.Identity(), False
    try:
        with torch.enable_grad():
            wrapper(torch.zeros((), device=device))
    finally:
        wrapper.module, wrapper.require_forward_param_sync = inner, True
    for name, sparse in order:
        parameter = parameters[name]
        if sparse:
            like = {"dtype": parameter.dtype, "device": parameter.device}
            zero = torch.sparse_coo_tensor(size=parameter.shape, check_invariants=False, **like)
        else:
            zero = torch.zeros_like(parameter)
        parameter.backward(zero)  # type: ignore[no-untyped-call,unused-ignore]  # untyped in torch
