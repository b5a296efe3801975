"""The log line of a resumed run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.utils.data import BatchSampler

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Resumption", "nothing_to_train", "samples_in"]


@dataclass(kw_only=True)
class Resumption:
    """What a resumed run restored, and from where.

    Attributes
    ----------
    checkpoint : str
        Its name.
    epoch : int, optional
        The epoch in which it was saved.
    batches : int, optional
        Batches of that epoch that are done; None when it was complete.
    samples : int, optional
        Samples of that epoch that are done, where it is known.
    optimizer_step : int
        Accumulation windows so far.
    restored, missing : sequence of str
        The recoverables that the checkpoint holds, and those that it does not.
    attributes, left_out : sequence of str
        Attributes that are restored, and those that training had changed and no checkpoint holds.
    changed : sequence of str
        What the script has changed since the checkpoint was saved.
    inexact : sequence of str
        Why the bits may differ from those of an undisturbed run.
    passed_over : sequence of str
        Damaged files of newer checkpoints.
    """

    checkpoint: str
    epoch: int | None
    batches: int | None
    samples: int | None
    optimizer_step: int
    restored: Sequence[str]
    missing: Sequence[str] = ()
    attributes: Sequence[str] = ()
    left_out: Sequence[str] = ()
    changed: Sequence[str] = ()
    inexact: Sequence[str] = ()
    passed_over: Sequence[str] = ()

    @property
    def is_warning(self) -> bool:
        """Whether the line is a warning."""
        return bool(self.changed or self.inexact or self.passed_over)

    def __str__(self) -> str:
        """Return the line."""
        where = "" if self.epoch is None else f"epoch {self.epoch}, "
        where += "complete" if self.batches is None else f"batch {self.batches}"
        done = "" if self.samples is None else f" ({self.samples} samples done)"
        line = f"Resuming from {self.checkpoint}: {where}, optimizer step {self.optimizer_step}"
        line += f"{done}. Restored: {', '.join(self.restored) or 'nothing'}."
        if self.attributes:
            line += f" Attributes: {', '.join(self.attributes)}."
        if self.left_out:
            line += f" Changed in training, in no checkpoint: {', '.join(self.left_out)}."
        if self.missing:
            line += f" Not in the checkpoint, unchanged: {', '.join(self.missing)}."
        if self.inexact:
            line += f" Same data order, but not the same bits: {', '.join(self.inexact)}."
        if self.changed:
            line += f" Changed since it was saved: {', '.join(self.changed)}."
        if not (self.changed or self.inexact or self.left_out or self.missing):
            line += " The run continues bit for bit."
        if self.passed_over:
            line += f" Skipped as damaged: {'; '.join(self.passed_over)}."
        return line


def nothing_to_train(epoch: int | None) -> str:
    """Return the line of a call of fit that has no epoch to train."""
    done = "its iterable gives no epoch" if epoch is None else f"all epochs up to {epoch} are done"
    return (
        f"Nothing to train: {done}. To train longer, give fit more epochs or raise the limit of "
        "the EpochCounter; to train anew, use another directory for the checkpoints."
    )


def samples_in(loader: Any, batches: int) -> int | None:
    """Return the samples in a loader's first ``batches`` of all ranks, None where unknown.

    Examples
    --------
    >>> import torch
    >>> samples_in(torch.utils.data.DataLoader(range(10), batch_size=4), 3)
    10
    """
    sampler = getattr(loader, "batch_sampler", None)
    while sampler is not None and type(sampler) is not BatchSampler:
        sampler = getattr(sampler, "sampler", None)  # a sampler that shards batches over ranks
    if sampler is None:
        return None
    try:
        return min(batches * sampler.batch_size, len(sampler.sampler))  # type: ignore[arg-type]  # is tried
    except TypeError:  # a sampler without a length
        return None
