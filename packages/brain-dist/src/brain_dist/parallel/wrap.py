"""Wrap modules in DDP, or shard them with FSDP2."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from brain_dist.parallel.consistency import broadcast_tensors, check_same_modules
from brain_dist.parallel.wrapped_modules import is_wrapped
from brain_dist.world import get_rank, get_world_size, is_distributed_initialized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, MutableMapping

    from torch.distributed.device_mesh import DeviceMesh

Parallel = Literal["ddp", "fsdp"]
CommHook = Literal["fp16", "bf16"]
# Only on these does torch's SyncBatchNorm work.
_SYNC_BATCHNORM_DEVICES = ("cuda", "xpu", "hpu")


def wrap_modules(
    modules: MutableMapping[str, nn.Module] | nn.ModuleDict,
    *,
    parallel: Parallel = "ddp",
    device: str | torch.device,
    find_unused_parameters: bool = False,
    static_graph: bool = False,
    gradient_as_bucket_view: bool = False,
    bucket_cap_mb: float | None = None,
    comm_hook: CommHook | None = None,
    sync_batchnorm: bool = True,
    precision: str = "fp32",
    shard: Callable[[str, nn.Module], bool] | Iterable[type[nn.Module]] | None = None,
    reshard_after_forward: bool = True,
    mesh: DeviceMesh | None = None,
    parallelize: Callable[[nn.Module, DeviceMesh], None] | None = None,
) -> None:
    """Wrap each module that has trainable parameters, in place; do nothing without a group.

    Before that, all ranks check that they have the same modules, and rank 0's parameters and
    buffers are copied to every rank, those of modules that stay unwrapped too.  The modules have
    to be on `device` already.  Make the optimizers afterwards: FSDP2 replaces the parameters.

    State-dict keys: DDP adds the prefix ``module.``; ``unwrap_module(m).state_dict()`` has the
    plain keys.  FSDP2 keeps the keys and makes the values DTensors.  ``full_state_dict(m)``
    returns plain keys and full tensors under either.

    Parameters
    ----------
    modules : mutable mapping of str to nn.Module
        Under DDP its values are replaced; under FSDP2 they stay the same objects.
    parallel : "ddp" or "fsdp"
        Every rank has all parameters, or a shard of each (FSDP2, ``fully_shard``).
    device : str or torch.device
        The device of the modules.
    find_unused_parameters, static_graph, gradient_as_bucket_view, bucket_cap_mb
        As in ``DistributedDataParallel``.
    comm_hook : "fp16" or "bf16", optional
        DDP sends the gradients in half precision.
    sync_batchnorm : bool
        Convert BatchNorm to SyncBatchNorm where torch supports it: on an accelerator, with more
        than one rank.  Otherwise each rank normalises by its own batch, and the running
        statistics are those of rank 0.  The module objects and their keys stay the same.
    precision : "fp32", "fp16" or "bf16"
        FSDP2 computes in it and reduces gradients in float32; DDP ignores it (use autocast).
    shard : callable or iterable of nn.Module classes, optional
        The submodules that FSDP2 gathers as one unit, besides each whole module: a predicate
        ``f(name, submodule)``, or classes.  By default the blocks: the items of ModuleList and
        Sequential that have children.
    reshard_after_forward : bool
        FSDP2 frees the gathered parameters between forward and backward.
    mesh : DeviceMesh, optional
        For FSDP2: one dimension shards, two replicate over the first and shard over the second.
        By default one dimension of all ranks.
    parallelize : callable, optional
        ``f(module, mesh)`` is called on each trainable module before FSDP2, for example to apply
        tensor parallelism in place.  FSDP2 uses the dimensions of the mesh that are not named
        "tp".

    Raises
    ------
    ValueError
        If options contradict each other, or the modules differ between ranks; it names the
        parameter and the rank.
    """
    if not is_distributed_initialized():
        return
    _check_options(parallel, comm_hook, mesh is not None or parallelize is not None)
    device = torch.device(device)
    check_same_modules(modules)
    shard_options = {
        "precision": precision,
        "shard": shard,
        "reshard_after_forward": reshard_after_forward,
        "mesh": mesh,
        "parallelize": parallelize,
    }
    ddp_options = {
        "find_unused_parameters": find_unused_parameters,
        "static_graph": static_graph,
        "gradient_as_bucket_view": gradient_as_bucket_view,
        "bucket_cap_mb": bucket_cap_mb,
    }
    wrapped: dict[int, nn.Module] = {}  # a module under two names is wrapped once
    for name, module in modules.items():
        if id(module) not in wrapped:
            trainable = any(p.requires_grad for p in module.parameters())
            if is_wrapped(module):
                wrapped[id(module)] = module
            elif not trainable:
                broadcast_tensors(module)
                wrapped[id(module)] = module
            else:
                if sync_batchnorm and _can_sync_batchnorm(device):
                    use_sync_batchnorm(module)
                wrapped[id(module)] = (
                    _shard(module, device, shard_options)
                    if parallel == "fsdp"
                    else _data_parallel(module, device, ddp_options, comm_hook)
                )
        modules[name] = wrapped[id(module)]


def use_sync_batchnorm(module: nn.Module) -> None:
    """Convert every BatchNorm in a module to SyncBatchNorm without replacing the objects.

    torch's own conversion makes new objects; code that holds a BatchNorm itself (a checkpointer,
    an optimizer's hook) would keep one that is no longer trained.  A subclass that overrides
    `forward` is not converted.
    """
    for part in module.modules():
        plain = type(part).forward is nn.modules.batchnorm._BatchNorm.forward  # noqa: SLF001 - no public base class
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and plain:  # noqa: SLF001
            part.__class__ = nn.SyncBatchNorm
            cast("nn.SyncBatchNorm", part).process_group = distributed.group.WORLD


class _NamingDDP(DistributedDataParallel):
    """DistributedDataParallel whose error names unused parameters instead of their indices."""

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        try:
            return super().forward(*inputs, **kwargs)  # type: ignore[no-untyped-call,unused-ignore]  # untyped in torch
        except RuntimeError as error:
            text = str(error)
            if "Expected to have finished reduction" not in text:
                raise
            names = [n for n, p in self.module.named_parameters() if p.requires_grad]
            listed = re.search(r"did not receive grad for rank \d+: ([\d ]+)", text)
            unused = [names[int(i)] for i in listed[1].split()] if listed else ["unknown"]
            raise RuntimeError(
                f"every trainable parameter has to take part in the loss of every step, got on "
                f"rank {get_rank()} no gradient for {', '.join(map(repr, unused))} of "
                f"{type(self.module).__name__}; freeze unused parameters with "
                f"requires_grad_(False), or write --find_unused_parameters"
            ) from error


def _check_options(parallel: str, comm_hook: str | None, meshed: bool) -> None:
    if parallel not in ("ddp", "fsdp"):
        raise ValueError(f"parallel is 'ddp' or 'fsdp', got {parallel!r}; write parallel='ddp'")
    if comm_hook not in (None, "fp16", "bf16"):
        raise ValueError(f"comm_hook is 'fp16' or 'bf16', got {comm_hook!r}; or leave it out")
    if comm_hook is not None and parallel == "fsdp":
        raise ValueError(
            f"comm_hook is an option of DDP, got comm_hook={comm_hook!r} with parallel='fsdp'; "
            f"leave it out"
        )
    if meshed and parallel == "ddp":
        raise ValueError(
            "mesh and parallelize are options of FSDP2, got them with parallel='ddp'; "
            "write parallel='fsdp'"
        )


def _can_sync_batchnorm(device: torch.device) -> bool:
    return device.type in _SYNC_BATCHNORM_DEVICES and get_world_size() > 1


def _shard(module: nn.Module, device: torch.device, options: dict[str, Any]) -> nn.Module:
    from brain_dist.parallel.fsdp import shard_module

    # Only needed for FSDP2: DDP broadcasts rank 0's parameters itself.
    broadcast_tensors(module)
    shard_module(module, device=device, **options)
    return module


def _data_parallel(
    module: nn.Module, device: torch.device, options: dict[str, Any], comm_hook: CommHook | None
) -> nn.Module:
    wrapped = _NamingDDP(module, device_ids=_device_ids(device), **options)
    if comm_hook is not None:
        _register_hook(wrapped, comm_hook)
    return wrapped


def _device_ids(device: torch.device) -> list[torch.device] | None:
    if device.type not in ("cuda", "xpu"):
        return None
    if device.index is None:
        index = getattr(torch, device.type).current_device()
        return [torch.device(device.type, index)]
    return [device]


def _register_hook(module: DistributedDataParallel, name: CommHook) -> None:
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    hooks = {"fp16": default_hooks.fp16_compress_hook, "bf16": default_hooks.bf16_compress_hook}
    # In a lambda: torch refuses its bf16 hook by name on gloo, although it works there.
    module.register_comm_hook(None, lambda state, bucket: hooks[name](state, bucket))  # noqa: PLW0108
