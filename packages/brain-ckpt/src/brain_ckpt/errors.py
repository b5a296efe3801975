"""What a checkpointer raises.

All of them are RuntimeErrors, as the reference's are, and take one string, so that they can be
raised again, with the ranks named, on every rank.
"""

from __future__ import annotations


class CheckpointError(RuntimeError):
    """Anything that went wrong with checkpoints; the base of the others."""


class CheckpointSaveError(CheckpointError):
    """A checkpoint was not saved; those that were there before are untouched."""


class CheckpointDeleteError(CheckpointError):
    """A checkpoint could not be deleted."""


class CheckpointLockedError(CheckpointError):
    """Another process writes to the same directory."""


class CheckpointDamagedError(CheckpointError):
    """A file of a checkpoint is not what was written; the text says which."""


class NoIntactCheckpointError(CheckpointDamagedError):
    """There are checkpoints, but not one that can be trusted."""


class CheckpointMismatchError(CheckpointError):
    """An intact checkpoint does not fit the objects that are to be restored."""


class UnsafeCheckpointError(CheckpointError):
    """A file would run code, or reach outside its directory, if it were loaded."""
