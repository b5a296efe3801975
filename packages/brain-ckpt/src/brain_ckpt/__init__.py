"""A crash-safe checkpointer for PyTorch training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain_dist.lazy import check_same_version, load_on_first_use

if TYPE_CHECKING:
    from brain_ckpt.checkpointer import Checkpointer
    from brain_ckpt.errors import (
        CheckpointDamagedError,
        CheckpointDeleteError,
        CheckpointError,
        CheckpointGoneError,
        CheckpointLockedError,
        CheckpointMirrorError,
        CheckpointMismatchError,
        CheckpointSaveError,
        NoIntactCheckpointError,
        UnsafeCheckpointError,
    )
    from brain_ckpt.recoverables.hooks import HookRegistry, torch_recovery, torch_save
    from brain_ckpt.recoverables.marks import (
        mark_as_loader,
        mark_as_saver,
        mark_as_transfer,
        register_checkpoint_hooks,
    )
    from brain_ckpt.recoverables.rng import RNGState
    from brain_ckpt.retention.checkpoint import Checkpoint, ckpt_recency
    from brain_ckpt.retention.policies import (
        DAY_S,
        HOUR_S,
        KeepBest,
        KeepEvery,
        KeepLast,
        KeepMostImportant,
        KeepPinned,
        KeepWithinBytes,
        Policy,
        any_of,
    )
    from brain_ckpt.setting_aside import set_aside
    from brain_ckpt.space_check import check_space
    from brain_ckpt.transfer.average import average_checkpoints, average_state_dicts
    from brain_ckpt.transfer.parameters import torch_parameter_transfer
    from brain_ckpt.transfer.pretrainer import Pretrainer

__all__ = [
    "DAY_S",
    "HOUR_S",
    "Checkpoint",
    "CheckpointDamagedError",
    "CheckpointDeleteError",
    "CheckpointError",
    "CheckpointGoneError",
    "CheckpointLockedError",
    "CheckpointMirrorError",
    "CheckpointMismatchError",
    "CheckpointSaveError",
    "Checkpointer",
    "HookRegistry",
    "KeepBest",
    "KeepEvery",
    "KeepLast",
    "KeepMostImportant",
    "KeepPinned",
    "KeepWithinBytes",
    "NoIntactCheckpointError",
    "Policy",
    "Pretrainer",
    "RNGState",
    "UnsafeCheckpointError",
    "any_of",
    "average_checkpoints",
    "average_state_dicts",
    "check_space",
    "ckpt_recency",
    "mark_as_loader",
    "mark_as_saver",
    "mark_as_transfer",
    "register_checkpoint_hooks",
    "set_aside",
    "torch_parameter_transfer",
    "torch_recovery",
    "torch_save",
]

__version__ = "0.1.0"
check_same_version(__name__, __version__)

# The module of each public name; a module is imported when a name of it is first used.
_HOMES = {
    ".checkpointer": "Checkpointer",
    ".errors": "CheckpointDamagedError CheckpointDeleteError CheckpointError "
    "CheckpointGoneError CheckpointLockedError CheckpointMirrorError CheckpointMismatchError "
    "CheckpointSaveError NoIntactCheckpointError UnsafeCheckpointError",
    ".recoverables.hooks": "HookRegistry torch_recovery torch_save",
    ".recoverables.marks": "mark_as_loader mark_as_saver mark_as_transfer "
    "register_checkpoint_hooks",
    ".recoverables.rng": "RNGState",
    ".retention.checkpoint": "Checkpoint ckpt_recency",
    ".retention.policies": "DAY_S HOUR_S KeepBest KeepEvery KeepLast KeepMostImportant "
    "KeepPinned KeepWithinBytes Policy any_of",
    ".setting_aside": "set_aside",
    ".space_check": "check_space",
    ".transfer.average": "average_checkpoints average_state_dicts",
    ".transfer.parameters": "torch_parameter_transfer",
    ".transfer.pretrainer": "Pretrainer",
}
__getattr__, __dir__ = load_on_first_use(__name__, _HOMES)
