"""State files: written as torch.save does, read without running code."""

from __future__ import annotations

import pickle
import struct
from typing import TYPE_CHECKING, Any

import torch

from brain_ckpt.compat import without_torch_crc
from brain_ckpt.errors import CheckpointDamagedError, UnsafeCheckpointError
from brain_ckpt.storage import filesystem
from brain_ckpt.storage.file_format import file_format, first_line
from brain_ckpt.storage.meta import load_plain_yaml

if TYPE_CHECKING:
    from pathlib import Path

_TEXT_LIMIT_BYTES = 2**20

# Keys that SpeechBrain renamed in its pull requests 2489 and 2463.
_RENAMED_KEYS = {
    ".mutihead_attn": ".multihead_attn",
    ".convs_intermedite": ".convs_intermediate",
}


def write_state(state: Any, stream: Any) -> None:
    """Write a state with torch.save, without torch's CRC-32, which nothing reads."""
    with without_torch_crc():
        torch.save(state, stream)


def read_state(path: Path, *, trusted: bool = False, mmap: bool = False) -> Any:
    """Read a state that torch.save wrote, or one of SpeechBrain's text formats.

    Parameters
    ----------
    path : Path
        The file.
    trusted : bool
        True unpickles any object, which runs the code that the file names.
    mmap : bool
        Whether to map tensors from the page cache; only for a caller that copies them.

    Returns
    -------
    object
        The state, with tensors on the CPU.

    Raises
    ------
    UnsafeCheckpointError
        If the file names code to run and is not trusted.
    CheckpointDamagedError
        If it cannot be read.
    """
    kind = file_format(path)
    if kind in ("text", "empty"):
        return load_plain_yaml(filesystem.read(path, _TEXT_LIMIT_BYTES), str(path))
    mmap = mmap and kind == "zip"
    try:
        state = torch.load(path, map_location="cpu", weights_only=not trusted, mmap=mmap)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error).lower():
            raise CheckpointDamagedError(f"{path} cannot be unpickled: {error}") from error
        raise UnsafeCheckpointError(
            f"{path} may hold tensors and plain values only, got more: {first_line(error)}; "
            f"if you trust who wrote it, load it with trusted=True"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, struct.error, OSError) as error:
        raise CheckpointDamagedError(f"{path} cannot be read: {first_line(error)}") from error
    return rename_old_keys(state)


def rename_old_keys(state: Any) -> Any:
    """Give the keys of old SpeechBrain models their current names."""
    if not isinstance(state, dict) or not any(
        old in key for key in state if isinstance(key, str) for old in _RENAMED_KEYS
    ):
        return state
    renamed = type(state)()
    for key, value in state.items():
        for old, new in _RENAMED_KEYS.items():
            key = key.replace(old, new) if isinstance(key, str) else key  # noqa: PLW2901
        renamed[key] = value
    return renamed
