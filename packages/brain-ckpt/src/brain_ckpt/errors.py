"""The errors of a checkpointer.

Those of checkpoints are RuntimeErrors, as in SpeechBrain, and take one string, so that the same
error can be raised on every rank with the ranks named.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class CheckpointError(RuntimeError):
    """Base class of all errors about checkpoints."""


class CheckpointSaveError(CheckpointError):
    """A checkpoint was not saved; existing checkpoints are unchanged.

    Attributes
    ----------
    may_pass : bool
        Whether the cause may pass by itself: no space or quota is left, or a network file system
        is away.
    in_background : bool
        Whether it was being written while training continued.
    meta : mapping
        The meta of the checkpoint.
    """

    may_pass = False
    in_background = False
    meta: Mapping[str, Any] = MappingProxyType({})


class CheckpointDeleteError(CheckpointError):
    """A checkpoint could not be deleted."""


class CheckpointLockedError(CheckpointError):
    """Another process writes to the same directory."""


class CheckpointDamagedError(CheckpointError):
    """A file of a checkpoint differs from what was written; the text names the file."""


class CheckpointGoneError(CheckpointError):
    """A checkpoint was deleted or replaced while it was read, or since it was listed."""


class NoIntactCheckpointError(CheckpointDamagedError):
    """There are checkpoints, and none of them is intact."""


class CheckpointMirrorError(CheckpointError):
    """An object store cannot be used as a mirror; the text holds no credentials."""


class CheckpointMismatchError(CheckpointError):
    """An intact checkpoint does not fit the objects to restore."""


class UnsafeCheckpointError(CheckpointError):
    """Loading a file would run code or reach outside its directory."""


class UsageError(Exception):
    """A command or export cannot be carried out as asked; the text says what to do instead."""
