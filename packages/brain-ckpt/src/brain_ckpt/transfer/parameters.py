"""Load the parameters of a file that fit a module."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from brain_ckpt.errors import CheckpointMismatchError
from brain_ckpt.loading.state_file import read_current, read_state_file
from brain_ckpt.recoverables.states import bare_module, fit_keys

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def torch_parameter_transfer(obj: torch.nn.Module, path: str | Path) -> None:
    """Load the parameters that fit by name, and log a warning for the others.

    Parameters
    ----------
    obj : torch.nn.Module
        The module.
    path : str or Path
        A state dict written by torch.save, or one in a checkpoint.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    CheckpointDamagedError, UnsafeCheckpointError
        If the file differs from what was written, or names code to run.
    CheckpointMismatchError
        If a parameter has the name of one of the module, but another shape.
    """
    file = Path(path).resolve()
    module = bare_module(obj)
    state = read_current(lambda found: read_state_file(found, file.stem, module), file)
    if not isinstance(state, Mapping):
        raise CheckpointMismatchError(
            f"{path} must hold a state dict, got a {type(state).__name__}; save "
            f"module.state_dict() there"
        )
    try:
        result = module.load_state_dict(fit_keys(module, state), strict=False)
    except RuntimeError as error:
        raise CheckpointMismatchError(
            f"transferred parameters must have the shapes of the module, got from {path}: {error}; "
            f"build the module as it was, or load the file with a custom hook"
        ) from error
    for key in result.missing_keys:
        logger.warning("%s has no value for %r of %s", path, key, type(module).__name__)
    for key in result.unexpected_keys:
        logger.warning("%s has %r, which %s does not have", path, key, type(module).__name__)
