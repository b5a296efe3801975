"""Tell wrapped modules from plain ones; unwrap them, and shard FSDP2's again."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeGuard, cast

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from brain_dist import compat

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

# Attribute in which `wrap_modules` keeps reshard_after_forward: FSDP2 has a setter, no getter.
RESHARDS = "_brain_dist_reshards"

_CONTAINERS = (nn.ModuleDict, nn.ModuleList, nn.Sequential)


def is_fsdp(module: nn.Module) -> TypeGuard[FSDPModule]:
    """Return whether FSDP2 has sharded this module."""
    # Importing FSDP takes half a second; if nothing has imported it, nothing is sharded.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def is_wrapped(module: nn.Module) -> bool:
    """Return whether DDP or FSDP2 has wrapped this module."""
    return isinstance(module, DistributedDataParallel) or is_fsdp(module)


def iter_modules(
    modules: nn.Module | Mapping[str, nn.Module] | Iterable[nn.Module],
) -> Iterator[nn.Module]:
    """Yield each of the modules, and the children of torch's containers among them."""
    if isinstance(modules, nn.Module):
        modules = (modules,)
    elif isinstance(modules, Mapping):
        modules = modules.values()
    for module in modules:
        yield module
        if isinstance(module, _CONTAINERS) and not is_fsdp(module):
            yield from iter_modules(module.children())


def fsdp_parts(
    modules: nn.Module | Mapping[str, nn.Module] | Iterable[nn.Module],
) -> list[FSDPModule]:
    """Return every module that FSDP2 gathers as one unit, among the modules and inside them."""
    roots = [module for module in iter_modules(modules) if is_fsdp(module)]
    return [part for root in roots for part in cast("nn.Module", root).modules() if is_fsdp(part)]


def reshard(modules: nn.Module | Mapping[str, nn.Module] | Iterable[nn.Module]) -> None:
    """Shard FSDP2 modules that a forward without a backward has left gathered.

    Such a forward, of an evaluation for example, leaves the outermost module with whole parameters:
    FSDP2 shards them in the backward. ``state_dict()`` shards them too, on the rank that calls it;
    if only one does, the next forward gathers on that rank alone and never ends. Optimizers hold
    the sharded parameters, so ``module.parameters()`` are other objects meanwhile.

    Nothing is sent, so any rank may call it, between a backward and the next forward. Other modules
    are left unchanged.

    Parameters
    ----------
    modules : nn.Module, mapping or iterable of nn.Module
    """
    for part in fsdp_parts(modules):
        part.reshard()


def sync_trainable(modules: nn.Module | Mapping[str, nn.Module] | Iterable[nn.Module]) -> None:
    """Let FSDP2 compute gradients for those parameters whose ``requires_grad`` is set now.

    FSDP2 copies the flag to the whole parameter at the first forward, and never again. Every rank
    calls this after a change; modules have to be sharded, see `reshard`.

    Parameters
    ----------
    modules : nn.Module, mapping or iterable of nn.Module
    """
    for part in fsdp_parts(modules):
        for sharded, whole in compat.fsdp_parameters(part):
            whole.requires_grad_(sharded.requires_grad)


def unwrap_module(module: nn.Module) -> nn.Module:
    """Return the module that the user made, without any wrapper.

    ``unwrap_module(m).state_dict()`` has the plain keys, whatever `m` is: without the ``module.``
    of DDP and DataParallel and the ``_orig_mod.`` of torch.compile.  FSDP2 shards in place, so such
    a module is returned as it is; its values are DTensors (see `full_state_dict`).

    Parameters
    ----------
    module : nn.Module

    Returns
    -------
    nn.Module
        The same object that the wrapper holds.
    """
    while True:
        inner = (
            module.module
            if isinstance(module, (DistributedDataParallel, DataParallel))
            else dict(module.named_children()).get("_orig_mod")  # scripted modules have it too
        )
        if not isinstance(inner, nn.Module):
            return module
        module = inner
