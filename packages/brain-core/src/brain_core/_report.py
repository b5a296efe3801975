"""The line with which a resumed run says what it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.utils.data import BatchSampler

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Resumption", "samples_in"]


@dataclass(kw_only=True)
class Resumption:
    """What a run that goes on has found.

    Attributes
    ----------
    checkpoint : str
        Its name.
    epoch : int, optional
        The epoch that it was saved in.
    batches : int, optional
        How many of that epoch's are done; None when it was over.
    samples : int, optional
        How many of that epoch's are done, where it can be told.
    optimizer_step : int
        Accumulation windows so far.
    restored, missing : sequence of str
        The recoverables that the checkpoint had a state for, and the others.
    inexact : sequence of str
        Why the bits may differ from those of a run that was not disturbed.
    passed_over : sequence of str
        What was damaged in newer checkpoints.
    """

    checkpoint: str
    epoch: int | None
    batches: int | None
    samples: int | None
    optimizer_step: int
    restored: Sequence[str]
    missing: Sequence[str] = ()
    inexact: Sequence[str] = ()
    passed_over: Sequence[str] = ()

    @property
    def is_worrying(self) -> bool:
        """Whether more than an ordinary message is called for."""
        return bool(self.inexact or self.passed_over)

    def __str__(self) -> str:
        """Say all of it in one line."""
        where = "" if self.epoch is None else f"epoch {self.epoch}, "
        where += "after its end" if self.batches is None else f"batch {self.batches} of it"
        done = "" if self.samples is None else f", {self.samples} samples of it done"
        line = f"Going on from {self.checkpoint}: {where}, optimizer step {self.optimizer_step}"
        line += f"{done}. Restored exactly: {', '.join(self.restored) or 'nothing'}."
        if self.missing:
            line += f" Not in the checkpoint and left as it is: {', '.join(self.missing)}."
        if self.inexact:
            line += f" Exact in data, not in bits: {', '.join(self.inexact)}."
        if self.passed_over:
            line += f" Newer, but damaged: {'; '.join(self.passed_over)}."
        return line


def samples_in(loader: Any, batches: int) -> int | None:
    """Count the samples in the first ``batches`` of a loader, those of all ranks; None: unknown.

    Examples
    --------
    >>> import torch
    >>> samples_in(torch.utils.data.DataLoader(range(10), batch_size=4), 3)
    10
    """
    sampler = getattr(loader, "batch_sampler", None)
    while sampler is not None and type(sampler) is not BatchSampler:
        sampler = getattr(sampler, "sampler", None)  # what deals batches out to ranks
    if sampler is None:
        return None
    try:
        return min(batches * sampler.batch_size, len(sampler.sampler))  # type: ignore[arg-type]  # is tried
    except TypeError:  # a sampler without a length
        return None
