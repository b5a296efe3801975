"""What differs between the supported versions of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import distributed

if TYPE_CHECKING:
    from datetime import timedelta

    from torch.distributed import ProcessGroup
    from torch.distributed.distributed_c10d import Store


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
