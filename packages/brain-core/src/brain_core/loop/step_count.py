"""The number of optimizer steps of a fit, known before it begins."""

from __future__ import annotations

__all__ = ["steps_of_fit"]


def steps_of_fit(
    batches: int | None,
    epochs: int | None,
    accumulation: int,
    *,
    batch_limit: int | None = None,
    step_limit: int | None = None,
) -> int | None:
    """Return how many optimizer steps a fit takes, None where it is not known.

    Parameters
    ----------
    batches : int, optional
        Batches of an epoch on this rank.
    epochs : int, optional
        Epochs of the whole fit.
    accumulation : int
        Batches to a step; the last step of an epoch may have fewer.
    batch_limit : int, optional
        The most batches of an epoch.
    step_limit : int, optional
        The most steps of the fit; the result where a length is not known.

    Examples
    --------
    >>> steps_of_fit(10, 3, 4)
    9
    >>> steps_of_fit(None, None, 4, step_limit=7), steps_of_fit(None, 3, 4)
    (7, None)
    """
    if batches is None or epochs is None:
        return step_limit
    if batch_limit is not None:
        batches = min(batches, batch_limit)
    steps = epochs * -(-batches // accumulation)
    return steps if step_limit is None else min(steps, step_limit)
