"""State files: written as torch.save does, read without running code."""

from __future__ import annotations

import pickle
import re
import struct
from typing import TYPE_CHECKING, Any

import torch

from brain_ckpt.compat import without_torch_crc
from brain_ckpt.errors import CheckpointDamagedError, UnsafeCheckpointError
from brain_ckpt.recoverables.encoding import decode_state, without_notes
from brain_ckpt.recoverables.safe_globals import SafeGlobals
from brain_ckpt.storage import filesystem
from brain_ckpt.storage.file_format import file_format, first_line
from brain_ckpt.storage.meta import load_plain_yaml

if TYPE_CHECKING:
    from pathlib import Path

_TEXT_LIMIT_BYTES = 2**20

# The name of a class or function in an error of torch's safe loader.
_REFUSED = re.compile(r"(?:GLOBAL|class|function|to) ([\w.]+\.\w+)")

# Keys that SpeechBrain renamed in its pull requests 2489 and 2463.
_RENAMED_KEYS = {
    ".mutihead_attn": ".multihead_attn",
    ".convs_intermedite": ".convs_intermediate",
}


def find_unsafe_names(path: Path, safe_globals: SafeGlobals) -> list[str]:
    """Return the classes and functions that keep torch's safe loader from reading a file."""
    if file_format(path) != "zip":
        return []
    with safe_globals.during_load():
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))


def write_state(state: Any, stream: Any) -> None:
    """Write a state with torch.save, without torch's CRC-32, which nothing reads."""
    with without_torch_crc():
        torch.save(state, stream)


def read_state(
    path: Path,
    *,
    trusted: bool = False,
    mmap: bool = False,
    safe_globals: SafeGlobals | None = None,
) -> Any:
    """Read a state that torch.save wrote, or one of SpeechBrain's text formats.

    Parameters
    ----------
    path : Path
        The file.
    trusted : bool
        True unpickles any object, which runs the code that the file names.
    mmap : bool
        Whether to map tensors from the page cache; only for a caller that copies them.
    safe_globals : SafeGlobals, optional
        Registered classes, whose objects the file can hold.

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
    safe_globals = safe_globals or SafeGlobals()
    state = _load(path, trusted=trusted, mmap=mmap, safe_globals=safe_globals)
    return rename_old_keys(decode_state(state, str(path), safe_globals))


def read_plain_state(path: Path) -> Any:
    """Read a state with arrays as tensors and other types as plain values, mapped from the file."""
    state = _load(path, trusted=False, mmap=True, safe_globals=SafeGlobals())
    return rename_old_keys(without_notes(state))


def _load(path: Path, *, trusted: bool, mmap: bool, safe_globals: SafeGlobals) -> Any:
    kind = file_format(path)
    if kind in ("text", "empty"):
        return load_plain_yaml(filesystem.read(path, _TEXT_LIMIT_BYTES), str(path))
    mmap = mmap and kind == "zip"
    try:
        with safe_globals.during_load():
            return torch.load(path, map_location="cpu", weights_only=not trusted, mmap=mmap)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error).lower():
            raise CheckpointDamagedError(f"{path} cannot be unpickled: {error}") from error
        raise UnsafeCheckpointError(
            f"{path} may hold tensors and plain values only, got {_refused(error)}; register a "
            f"class of yours with safe_globals=[...], or pass trusted=True if you trust the file"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, struct.error, OSError) as error:
        raise CheckpointDamagedError(f"{path} cannot be read: {first_line(error)}") from error


def _refused(error: Exception) -> str:
    """Return the name that torch's safe loader has refused, without its advice."""
    found = _REFUSED.search(str(error))
    return found[1] if found else "a pickle that runs code"


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
