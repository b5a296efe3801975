"""Write states from checkpoints to single files: for torch.load, and as safetensors."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from brain_ckpt.errors import CheckpointSaveError, UsageError
from brain_ckpt.loading.contents import choose_file, read_state_of
from brain_ckpt.storage import filesystem

if TYPE_CHECKING:
    from brain_ckpt.storage.opened import OpenedCheckpoint


def write_torch(state: Any, target: str | Path) -> None:
    """Write a state with torch.save to a new file, completely or not at all.

    Raises
    ------
    UsageError
        If the file exists, or its directory does not.
    CheckpointSaveError
        If it cannot be written.
    """
    with _new_file(target) as temporary:
        torch.save(state, temporary)


def export_safetensors(opened: OpenedCheckpoint, name: str, target: str | Path) -> list[str]:
    """Write the tensors of one state as a safetensors file.

    Parameters
    ----------
    opened : OpenedCheckpoint
        A verified checkpoint.
    name : str
        The name of the recoverable.
    target : str or Path
        The new file.

    Returns
    -------
    list of str
        The keys of values that are not tensors, which the file cannot hold.

    Raises
    ------
    ImportError
        If the extra ``safetensors`` is not installed.
    UsageError
        If the state has no tensors by name, or the file exists.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError(
            "safetensors files need the package safetensors, which is not installed; run "
            "pip install 'brain-ckpt[safetensors]'"
        ) from error
    file = choose_file(opened, name)
    state = read_state_of(opened, file)
    if not isinstance(state, Mapping):
        raise UsageError(
            f"only a state dict can be exported, got a {type(state).__name__} in {file}; name "
            f"another recoverable"
        )
    # Tied weights share memory, which safetensors does not support; each name gets a copy.
    tensors = {
        str(key): value.detach().clone(memory_format=torch.contiguous_format)
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise UsageError(
            f"only a state dict of tensors by name can be exported, got {list(state)[:5]!r} in "
            f"{file}; name another recoverable, such as the model"
        )
    source = opened.checkpoint.path.name
    with _new_file(target) as temporary:
        try:
            save_file(tensors, temporary, {"format": "pt", "checkpoint": source})
        except SafetensorError as error:
            raise CheckpointSaveError(f"{target} could not be written: {error}") from error
    return [str(key) for key, value in state.items() if not isinstance(value, torch.Tensor)]


@contextlib.contextmanager
def _new_file(target: str | Path) -> Iterator[Path]:
    final = Path(target)
    if os.path.lexists(final):
        raise UsageError(
            f"the output must be a new file, got {os.fspath(target)!r}, which exists; name "
            f"another, or delete it"
        )
    if not final.parent.is_dir():
        raise UsageError(
            f"the directory of the output must exist, got {os.fspath(target)!r}; make "
            f"{os.fspath(final.parent)!r} first"
        )
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    try:
        yield temporary
        filesystem.fsync_file(temporary)
        filesystem.rename(temporary, final)
        filesystem.fsync_directory(final.parent)
    except CheckpointSaveError:
        raise
    except (OSError, RuntimeError) as error:
        raise CheckpointSaveError(f"{final} could not be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
