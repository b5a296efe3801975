"""Skip the reduction of gradients while they accumulate."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING

from torch.nn.parallel import DistributedDataParallel

from brain_dist.parallel.wrapped_modules import is_fsdp, iter_modules
from brain_dist.world import is_distributed_initialized

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from torch import nn
    from torch.distributed.fsdp import FSDPModule

_NULL_CONTEXT: AbstractContextManager[None] = nullcontext()
_SYNC_IS_OFF = "_brain_dist_no_sync"


def no_sync(
    modules: nn.Module | Mapping[str, nn.Module] | Iterable[nn.Module], use: bool = True
) -> AbstractContextManager[object]:
    """Keep the gradients of any set of modules local inside the block.

    It uses ``DistributedDataParallel.no_sync`` and FSDP2's ``set_requires_gradient_sync``.  The
    former setting is restored when the block ends, also by an exception.  DDP decides in the
    forward whether to synchronise: run both the forward and the backward of a batch inside.

    Parameters
    ----------
    modules : nn.Module, mapping or iterable of nn.Module
        Those that are neither DDP nor FSDP2 are left unchanged.  The children of ``ModuleDict``,
        ``ModuleList`` and ``Sequential`` are included.
    use : bool
        False does nothing, for a conditional block.

    Returns
    -------
    context manager
        A null context if no module synchronises.
    """
    if not use or not is_distributed_initialized():
        return _NULL_CONTEXT
    contexts: list[AbstractContextManager[object]] = []
    for module in iter_modules(modules):
        if isinstance(module, DistributedDataParallel):
            contexts.append(module.no_sync())
        elif is_fsdp(module):
            contexts.append(_ShardedNoSync(module))
    if not contexts:
        return _NULL_CONTEXT
    if len(contexts) == 1:
        return contexts[0]
    return _EnterAll(contexts)


class _EnterAll(AbstractContextManager[None]):
    """Several contexts as one."""

    def __init__(self, contexts: list[AbstractContextManager[object]]) -> None:
        self._contexts = contexts
        self._stack = ExitStack()

    def __enter__(self) -> None:
        with ExitStack() as stack:
            for context in self._contexts:
                stack.enter_context(context)
            # If a context above fails to enter, the stack exits those before it.
            self._stack = stack.pop_all()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(exc_type, exc_value, trace)


class _ShardedNoSync(AbstractContextManager[None]):
    """Turns the synchronisation of an FSDP2 module off; FSDP2 has a setter, but no getter."""

    def __init__(self, module: FSDPModule) -> None:
        self._module = module
        self._was_off = False

    def __enter__(self) -> None:
        self._was_off = vars(self._module).get(_SYNC_IS_OFF, False)
        self._set(off=True)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._set(off=self._was_off)

    def _set(self, *, off: bool) -> None:
        vars(self._module)[_SYNC_IS_OFF] = off
        self._module.set_requires_gradient_sync(not off)
