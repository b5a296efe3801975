"""Tell wrapped modules from plain ones, and unwrap them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeGuard

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

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
