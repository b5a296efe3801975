"""Leave out the reduction of gradients while they accumulate."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING

from torch.nn.parallel import DistributedDataParallel

from brain_dist.parallel.wrapped_modules import is_fsdp, members
from brain_dist.world import is_distributed_initialized

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from torch import nn
    from torch.distributed.fsdp import FSDPModule

_NOTHING: AbstractContextManager[None] = nullcontext()
_OFF = "_brain_dist_no_sync"


def no_sync(
    modules: nn.Module | Mapping[str, nn.Module] | Iterable[nn.Module], use: bool = True
) -> AbstractContextManager[object]:
    """Keep the gradients of any set of modules local inside the block.

    By torch's own means: ``DistributedDataParallel.no_sync`` and FSDP2's
    ``set_requires_gradient_sync``.  What was set before is set again when the block ends, also
    by an exception.  As torch has it, DDP decides in the forward: both forward and backward
    of a batch belong inside.

    Parameters
    ----------
    modules : nn.Module, mapping or iterable of nn.Module
        Those that are neither DDP nor FSDP2 are left alone.  ``ModuleDict``, ``ModuleList`` and
        ``Sequential`` are looked into.
    use : bool
        False does nothing, for a block that is conditional.

    Returns
    -------
    context manager
        A null context where there is nothing to do.
    """
    if not use or not is_distributed_initialized():
        return _NOTHING
    contexts: list[AbstractContextManager[object]] = []
    for module in members(modules):
        if isinstance(module, DistributedDataParallel):
            contexts.append(module.no_sync())
        elif is_fsdp(module):
            contexts.append(_ShardedNoSync(module))
    if not contexts:
        return _NOTHING
    if len(contexts) == 1:
        return contexts[0]
    return _All(contexts)


class _All(AbstractContextManager[None]):
    def __init__(self, contexts: list[AbstractContextManager[object]]) -> None:
        self._contexts = contexts
        self._stack = ExitStack()

    def __enter__(self) -> None:
        with ExitStack() as stack:
            for context in self._contexts:
                stack.enter_context(context)
            # Only now is there something to leave: a failure above undoes itself.
            self._stack = stack.pop_all()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(exc_type, exc_value, trace)


class _ShardedNoSync(AbstractContextManager[None]):
    """FSDP2 has a setter and no getter: whether an outer block has it off is kept beside it."""

    def __init__(self, module: FSDPModule) -> None:
        self._module = module
        self._was_off = False

    def __enter__(self) -> None:
        self._was_off = vars(self._module).get(_OFF, False)
        self._set(off=True)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._set(off=self._was_off)

    def _set(self, *, off: bool) -> None:
        vars(self._module)[_OFF] = off
        self._module.set_requires_gradient_sync(not off)
