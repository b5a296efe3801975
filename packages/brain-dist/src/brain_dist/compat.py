"""Differences between the supported versions of torch."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import distributed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta

    from torch import nn
    from torch.distributed import ProcessGroup
    from torch.distributed.distributed_c10d import Store
    from torch.distributed.fsdp import FSDPModule


def default_store() -> Store:
    """Return the key-value store of the default group."""
    # Private in every version so far, and the only access to a store that somebody else chose.
    return distributed.distributed_c10d._get_default_store()  # noqa: SLF001


def default_group() -> ProcessGroup:
    """Return the default group as an object that lives exactly as long as the group."""
    group = distributed.group.WORLD
    assert group is not None
    return group


def all_groups() -> list[ProcessGroup]:
    """Return all groups that were made and not destroyed."""
    # Private in every version so far.
    return list(distributed.distributed_c10d._world.pg_map)  # noqa: SLF001


def new_gloo_group(timeout: timedelta) -> ProcessGroup:
    """Make a gloo group of all ranks; every rank has to call it."""
    return cast("ProcessGroup", distributed.new_group(backend="gloo", timeout=timeout))  # type: ignore[no-untyped-call,unused-ignore]  # untyped in torch


def gloo_worker_names() -> frozenset[str]:
    """Return the names that worker threads of gloo have in ``/proc``."""
    names = {"pt_gloo_runloop"}
    if torch.__version__ < "2.13":
        # torch began to name them between 2.9 and 2.13; before, they have the process's name.
        with open("/proc/self/comm", encoding="utf-8") as file:
            names.add(file.read().rstrip("\n"))
    return frozenset(names)


def group_destructor_keeps_the_gil() -> bool:
    """Return whether the destructor of a group keeps the GIL while it waits for gloo's workers.

    A worker that asks for the GIL meanwhile, to release a finished operation, waits for ever.
    """
    return torch.__version__ < "2.9"


def fsdp_supports_cpu() -> bool:
    """Return whether FSDP2 of this torch runs on the CPU; that of torch 2.6 does not."""
    return hasattr(torch.cpu.Stream, "record_event")


def fsdp_parameters(part: FSDPModule) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    """Yield the sharded and the whole form of each parameter that FSDP2 has gathered before."""
    state = cast("Any", part)._get_fsdp_state()  # noqa: SLF001 - there is no public way
    groups = getattr(state, "_fsdp_param_groups", None)  # several since torch 2.13
    for group in [state._fsdp_param_group] if groups is None else groups:  # noqa: SLF001
        for parameter in () if group is None else group.fsdp_params:
            whole = getattr(parameter, "_unsharded_param", None)
            if whole is not None:
                yield parameter.sharded_param, whole


def reset_forward_order(root: FSDPModule) -> None:
    """Make FSDP2 forget the order in which its submodules ran without a backward.

    FSDP2 gathers parameters in that order in the next backward.  If some ranks have run more
    forwards than others, the ranks would wait for each other for ever.
    """
    if hasattr(root, "reset_iter_state"):  # torch 2.13
        # If no forward has run, there is nothing to reset, and torch raises AttributeError.
        with contextlib.suppress(AttributeError):
            root.reset_iter_state()
        return
    for part in cast("nn.Module", root).modules():
        if hasattr(part, "_get_fsdp_state"):
            state = cast("Any", part)._get_fsdp_state()  # noqa: SLF001 - no public way before 2.13
            order = getattr(state._comm_ctx, "post_forward_order", [])  # noqa: SLF001
            order.clear()  # there is none before the first forward
            group = state._fsdp_param_group  # noqa: SLF001
            if group is not None:
                group._post_forward_indices.clear()  # noqa: SLF001
