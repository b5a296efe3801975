"""FSDP2: every rank holds a shard of each parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from brain_dist import compat
from brain_dist.parallel.wrapped_modules import RESHARDS
from brain_dist.precision import AMPConfig
from brain_dist.world import get_world_size

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Chooser = Callable[[str, nn.Module], bool]


def shard_module(
    module: nn.Module,
    *,
    device: torch.device,
    precision: str,
    shard: Chooser | Iterable[type[nn.Module]] | None,
    reshard_after_forward: bool,
    mesh: DeviceMesh | None,
    parallelize: Callable[[nn.Module, DeviceMesh], None] | None,
) -> None:
    """Shard a module in place: the chosen submodules first, then the rest as one unit."""
    if device.type == "cpu" and not compat.fsdp_supports_cpu():
        raise ValueError(
            f"FSDP2 on the CPU needs a later torch, got parallel='fsdp' on 'cpu' with torch "
            f"{torch.__version__}; write parallel='ddp', or install a newer torch"
        )
    mesh = mesh or init_device_mesh(device.type, (get_world_size(),), mesh_dim_names=("dp",))
    if parallelize is not None:
        parallelize(module, mesh)
    dtype = AMPConfig.from_name(precision).dtype
    half = dtype != torch.float32
    policy = MixedPrecisionPolicy(
        param_dtype=dtype if half else None, reduce_dtype=torch.float32 if half else None
    )
    data_mesh = _without_tensor_dimension(mesh)
    for unit in [*_units(module, shard), module]:
        # torch frees the parameters of the outermost module in the backward only.
        reshards = reshard_after_forward and unit is not module
        fully_shard(unit, mesh=data_mesh, mp_policy=policy, reshard_after_forward=reshards)
        vars(unit)[RESHARDS] = reshards


def _without_tensor_dimension(mesh: DeviceMesh) -> DeviceMesh:
    names = tuple(name for name in mesh.mesh_dim_names or () if name != "tp")
    if len(names) == mesh.ndim or not names:
        return mesh
    return mesh[names]


def _units(module: nn.Module, shard: Chooser | Iterable[type[nn.Module]] | None) -> list[nn.Module]:
    chosen = _chooser(module, shard)
    # Inner units first: the parameters of each are no longer part of those around it.
    units = [part for name, part in module.named_modules() if name and chosen(name, part)]
    return [unit for unit in reversed(units) if any(True for _ in unit.parameters())]


def _chooser(module: nn.Module, shard: Chooser | Iterable[type[nn.Module]] | None) -> Chooser:
    if shard is None:
        # Blocks, not single layers: each unit costs a collective in forward and in backward.
        blocks = {
            id(child)
            for parent in module.modules()
            if isinstance(parent, (nn.ModuleList, nn.Sequential))
            for child in parent
            if any(True for _ in child.children())
        }
        return lambda _, part: (
            id(part) in blocks and not isinstance(part, (nn.ModuleList, nn.ModuleDict))
        )
    if callable(shard):
        return shard
    classes = tuple(shard)
    return lambda _, part: isinstance(part, classes)
