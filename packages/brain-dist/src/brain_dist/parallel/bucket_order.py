"""Give DDP of a resumed run the buckets that it had before the stop."""

from __future__ import annotations

import functools
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from brain_dist.collectives import ddp_broadcast
from brain_dist.parallel.warm_up import ORDER_MATTERS_FROM, random_state, tensors_put_back
from brain_dist.world import get_world_size, is_distributed_initialized

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch.utils.hooks import RemovableHandle

logger = logging.getLogger(__name__)

# Name of a parameter, and whether its gradient is sparse: DDP reduces those in another way.
Order = list[tuple[str, bool]]


class GradientOrder:
    """Makes resuming exact on three ranks or more: remembers in which order gradients come.

    After its first synchronised backward DDP regroups the gradients in the order in which they
    came on rank 0, so its second step sums them in another order than its first, and the
    rounding differs.  A resumed run is at its first step again (pytorch issues 35137 and
    44798).  This object notes the order in the first synchronised backward, by hooks that then
    remove themselves; a run that resumes plays it back, so that DDP regroups before the first
    step.  No batch is needed and no code of yours is called::

        wrap_modules(modules, device=device)
        order = GradientOrder(modules)
        if resuming:
            ...  # load modules, optimizers and so on
            order.load_state_dict(state["order"])
            order.replay()
        ...
        state["order"] = order.state_dict()

    It does nothing in one process, on two ranks (where a sum has one order), under FSDP2, and
    under DDP with ``find_unused_parameters``, which never regroups.  It cannot know what
    ``static_graph`` will do: use `rehearse` for that.

    Parameters
    ----------
    modules : mapping of str to nn.Module
        Those that `wrap_modules` has wrapped, before their first backward.

    Attributes
    ----------
    modules : dict of str to DistributedDataParallel
        Those of them whose order is kept.
    """

    def __init__(self, modules: Mapping[str, nn.Module] | nn.ModuleDict) -> None:
        self.modules: dict[str, DistributedDataParallel] = {}
        self._recorders: dict[str, _Recorder] = {}
        self._loaded: dict[str, Order] = {}
        if not is_distributed_initialized() or get_world_size() < ORDER_MATTERS_FROM:
            return
        for name, module in modules.items():
            seen = any(module is other for other in self.modules.values())
            if isinstance(module, DistributedDataParallel) and _regroups(module) and not seen:
                self.modules[name] = module
                self._recorders[name] = _Recorder(module)

    def state_dict(self) -> dict[str, Order]:
        """Return the orders known so far: those of rank 0 are the ones to save.

        Returns
        -------
        dict of str to list of (str, bool)
            By module; of each trainable parameter the name, and whether its gradient is sparse.
            What was loaded stays in it until the module has an order of its own.
        """
        own = {k: list(r.order) for k, r in self._recorders.items() if r.is_complete}
        return {**self._loaded, **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep what `state_dict` returned, for `replay`."""
        self._loaded = {
            name: [(parameter, bool(sparse)) for parameter, sparse in order]
            for name, order in state.items()
        }

    def replay(self) -> list[str]:
        """Let DDP see the gradients come in the order that was loaded, zeros all of them.

        Every rank has to call it, where gradients and buffers may be overwritten for a moment:
        before the first step.  What rank 0 has loaded counts.  Gradients, buffers and random
        number generators are put back; hooks on parameters, and on DDP's communication, run.

        Returns
        -------
        list of str
            The modules that will now sum as before the stop.  A module that has done a backward
            already keeps its order, and one whose parameters are not those of the state gets
            none: a warning says so.
        """
        if not self.modules:
            return []
        self._loaded = ddp_broadcast(self._loaded)
        return [name for name in self.modules if name in self._loaded and self._replay(name)]

    def _replay(self, name: str) -> bool:
        recorder, order = self._recorders[name], self._loaded[name]
        if recorder.is_complete:
            return recorder.order == order
        wrapper = self.modules[name]
        if {key for key, _ in order} != recorder.names:
            logger.warning(
                "The first step of %r may differ in its last bits from that of the run that was "
                "saved, which trained other parameters: DDP groups gradients anew.",
                name,
            )
            return False
        with recorder.off(), random_state(), tensors_put_back([wrapper]):
            _backward_in_order(wrapper, order)
        recorder.finish(order)
        return True


class _Recorder:
    """Notes the order of one module's first synchronised backward."""

    def __init__(self, wrapper: DistributedDataParallel) -> None:
        self.order: Order = []
        self._wrapper = wrapper
        trainable = [(n, p) for n, p in wrapper.module.named_parameters() if p.requires_grad]
        self.names = {name for name, _ in trainable}
        self._synchronises = False
        self._is_off = False
        # A forward decides whether the backward after it synchronises.
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
    def off(self) -> Iterator[None]:
        self._is_off = True
        try:
            yield
        finally:
            self._is_off = False

    def _on_forward(self, wrapper: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG002 - torch's interface
        if torch.is_grad_enabled():
            self._synchronises = bool(self._wrapper.require_backward_grad_sync)

    def _on_gradient(self, name: str, parameter: torch.Tensor) -> None:
        if not self._synchronises or self._is_off or self.is_complete:
            return
        sparse = parameter.grad is not None and parameter.grad.layout != torch.strided
        self.order.append((name, sparse))
        if len(self.order) == len(self.names):
            self.finish(self.order)


def _regroups(wrapper: DistributedDataParallel) -> bool:
    return not (wrapper.find_unused_parameters or wrapper.static_graph)


def _backward_in_order(wrapper: DistributedDataParallel, order: Order) -> None:
    inner = wrapper.module
    parameters = dict(inner.named_parameters())
    device = next(iter(parameters.values())).device
    # DDP makes ready for a backward in its forward: of nothing, here, not even of buffers.
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
