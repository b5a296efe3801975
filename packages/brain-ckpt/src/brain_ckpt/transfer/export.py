"""Writing what a checkpoint holds as one file for others: averages, and safetensors."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from brain_ckpt.cli.inspect import WrongUseError
from brain_ckpt.errors import CheckpointSaveError
from brain_ckpt.loading.contents import choose_file, read_file
from brain_ckpt.storage import filesystem

if TYPE_CHECKING:
    from brain_ckpt.retention.policies import Checkpoint


def write_torch(state: Any, target: str | Path) -> None:
    """Write a state as torch.save does, whole or not at all; nothing is replaced.

    Raises
    ------
    WrongUseError
        If the target is there, or its directory is not.
    CheckpointSaveError
        If the disk refuses.
    """
    with _whole(target) as temporary:
        torch.save(state, temporary)


def export_safetensors(checkpoint: Checkpoint, name: str, target: str | Path) -> list[str]:
    """Write the tensors of one state as a safetensors file.

    Parameters
    ----------
    checkpoint : Checkpoint
        A verified one.
    name : str
        The recoverable.
    target : str or Path
        The file to make.

    Returns
    -------
    list of str
        The keys of values that are no tensors, which such a file cannot hold.

    Raises
    ------
    ImportError
        If safetensors is not installed; it is an extra.
    WrongUseError
        If there are no tensors by name, or the target is there.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError(
            "safetensors files are written with safetensors, got a Python without it; run "
            "pip install 'brain-ckpt[safetensors]'"
        ) from error
    file = choose_file(checkpoint, name)[1]
    state = read_file(file, file.stem)
    if not isinstance(state, Mapping):
        raise WrongUseError(
            f"what is exported is a state dict, got a {type(state).__name__} in {file}; name "
            f"another recoverable"
        )
    # Tied weights share memory, which a safetensors file cannot say: each name gets its own copy.
    tensors = {
        str(key): value.detach().clone(memory_format=torch.contiguous_format)
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise WrongUseError(
            f"what is exported is a state dict of tensors by name, got {list(state)[:5]!r} in "
            f"{file}; name another recoverable, such as the model"
        )
    with _whole(target) as temporary:
        try:
            save_file(tensors, temporary, {"format": "pt", "checkpoint": checkpoint.path.name})
        except SafetensorError as error:
            raise CheckpointSaveError(f"{target} could not be written: {error}") from error
    return [str(key) for key, value in state.items() if not isinstance(value, torch.Tensor)]


@contextlib.contextmanager
def _whole(target: str | Path) -> Iterator[Path]:
    final = Path(target)
    if os.path.lexists(final):
        raise WrongUseError(
            f"the file to write is a new one, got {os.fspath(target)!r}, which is there; name "
            f"another, or delete it"
        )
    if not final.parent.is_dir():
        raise WrongUseError(
            f"the file to write lies in a directory that is there, got {os.fspath(target)!r}; make "
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
