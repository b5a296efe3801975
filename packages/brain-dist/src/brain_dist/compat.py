"""What differs between the supported versions of torch."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import distributed

if TYPE_CHECKING:
    from datetime import timedelta

    from torch import nn
    from torch.distributed import ProcessGroup
    from torch.distributed.distributed_c10d import Store
    from torch.distributed.fsdp import FSDPModule


def default_store() -> Store:
    """Return the key-value store that the default group was made with."""
    # Private in every version so far, and the only way to a store that somebody else chose.
    return distributed.distributed_c10d._get_default_store()  # noqa: SLF001


def default_group() -> ProcessGroup:
    """Return the default group as an object that lives exactly as long as the group."""
    group = distributed.group.WORLD
    assert group is not None
    return group


def new_gloo_group(timeout: timedelta) -> ProcessGroup:
    """Make a gloo group of all ranks; every rank has to call it."""
    return cast("ProcessGroup", distributed.new_group(backend="gloo", timeout=timeout))  # type: ignore[no-untyped-call,unused-ignore]  # untyped in torch


def gloo_worker_names() -> frozenset[str]:
    """Return the names that worker threads of gloo have in ``/proc``."""
    names = {"pt_gloo_runloop"}
    if torch.__version__ < "2.9":
        # Some earlier version began to name them; before, they have the name of the process.
        with open("/proc/self/comm", encoding="utf-8") as file:
            names.add(file.read().rstrip("\n"))
    return frozenset(names)


def sharding_works_on_cpu() -> bool:
    """Say whether this torch's FSDP2 runs on the CPU; torch 2.6's does not."""
    return hasattr(torch.cpu.Stream, "record_event")


def forget_forwards(root: FSDPModule) -> None:
    """Make FSDP2 forget in which order its parts ran without a backward.

    It gathers parameters in that order in the next backward, also after forwards that some
    ranks did oftener than others; they would wait for each other for ever.
    """
    if hasattr(root, "reset_iter_state"):  # torch 2.13
        # Where no forward has run yet there is nothing to forget, and torch stumbles over it.
        with contextlib.suppress(AttributeError):
            root.reset_iter_state()
        return
    for part in cast("nn.Module", root).modules():
        if hasattr(part, "_get_fsdp_state"):
            state = cast("Any", part)._get_fsdp_state()  # noqa: SLF001 - no public way before 2.13
            state._comm_ctx.post_forward_order.clear()  # noqa: SLF001
            group = state._fsdp_param_group  # noqa: SLF001
            if group is not None:
                group._post_forward_indices.clear()  # noqa: SLF001
