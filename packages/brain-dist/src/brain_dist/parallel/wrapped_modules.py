"""Tell wrapped modules from plain ones."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeGuard

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


# Where `wrap_modules` notes an FSDP2 module's reshard_after_forward, which torch only sets.
RESHARDS = "_brain_dist_reshards"


def is_fsdp(module: nn.Module) -> TypeGuard[FSDPModule]:
    """Say whether FSDP2 has sharded this module."""
    # Importing FSDP takes half a second, and where nobody has, nothing is sharded.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def is_wrapped(module: nn.Module) -> bool:
    """Say whether `wrap_modules` has nothing more to do with this module."""
    return isinstance(module, DistributedDataParallel) or is_fsdp(module)


def members(
    modules: nn.Module | Mapping[str, nn.Module] | Iterable[nn.Module],
) -> Iterator[nn.Module]:
    """Yield the modules of a set given in any way, and what torch's containers in it hold."""
    if isinstance(modules, nn.Module):
        modules = (modules,)
    elif isinstance(modules, Mapping):
        modules = modules.values()
    for module in modules:
        yield module
        if isinstance(module, _CONTAINERS) and not is_fsdp(module):
            yield from members(module.children())


_CONTAINERS = (nn.ModuleDict, nn.ModuleList, nn.Sequential)


def unwrap_module(module: nn.Module) -> nn.Module:
    """Return the module that the user made, out of any wrapping.

    ``unwrap_module(m).state_dict()`` has the plain keys, whatever `m` is: DDP's and
    DataParallel's ``module.`` and torch.compile's ``_orig_mod.`` are gone.  FSDP2 shards in
    place, so such a module is its own; its values are DTensors (see `full_state_dict`).

    Parameters
    ----------
    module : nn.Module

    Returns
    -------
    nn.Module
        The very object, shared with the wrapper.
    """
    while True:
        inner = (
            module.module
            if isinstance(module, (DistributedDataParallel, DataParallel))
            else vars(module).get("_modules", {}).get("_orig_mod")
        )
        if not isinstance(inner, nn.Module):
            return module
        module = inner
