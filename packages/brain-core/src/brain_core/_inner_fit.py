"""A `fit` that a hook of another `fit` calls, as recipes for GANs do to train the discriminator."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from ._losses import LossMean
from ._resume import RankState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._stopping import StoppablePasses

__all__ = ["apart_from_the_outer_fit"]

# What one fit writes and the other must find as it was. The rest they share: modules, optimizers,
# options, the count of optimizer steps.
_OF_ONE_FIT = (
    "_batches",
    "_border",
    "_epoch",
    "_epochs_done",
    "_has_own_sampler",
    "_is_inner_fit",
    "_own_average",
    "_rank_state",
    "_resumes_epoch",
    "_train_mean",
    "_validates",
    "_window_batches",
    "_window_fillers",
    "_window_nonfinite",
    "is_filler",
    "nonfinite_count",
    "step",
    "train_sampler",
)


@contextmanager
def apart_from_the_outer_fit(brain: StoppablePasses) -> Iterator[None]:
    """Let a fit that is called within another leave the other's progress alone.

    Only the outer one can be gone on from: it saves, and stops, at its own borders. Nothing is
    changed where there is no other fit under way.
    """
    if brain._border is None and not brain._is_inner_fit:  # noqa: SLF001 - a part of it
        yield
        return
    kept = {name: getattr(brain, name) for name in _OF_ONE_FIT}
    fresh = {
        "_batches": None,
        "_border": None,
        "_has_own_sampler": False,
        "_is_inner_fit": True,
        "_own_average": None,
        "_rank_state": RankState(LossMean),
        "_resumes_epoch": False,
        "_train_mean": LossMean(),
        "step": 0,
    }
    vars(brain).update(fresh)
    try:
        yield
    finally:
        vars(brain).update(kept)
