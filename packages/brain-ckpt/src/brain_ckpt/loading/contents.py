"""What is inside the files of a checkpoint, tensor by tensor; never running code."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from brain_ckpt.cli.inspect import WrongUseError
from brain_ckpt.errors import CheckpointDamagedError
from brain_ckpt.loading.shards import assemble
from brain_ckpt.recoverables.serialization import read_state
from brain_ckpt.storage import filesystem
from brain_ckpt.storage.layout import PARAMFILE_EXT, SHARDS_DIRECTORY

if TYPE_CHECKING:
    from brain_ckpt.retention.policies import Checkpoint

_STATE_SUFFIXES = (PARAMFILE_EXT, ".pt", ".pth")
_TEXT_SUFFIXES = (".json", ".yaml", ".yml", ".txt")
_TEXT_LIMIT_BYTES = 2**20
_TENSOR_MAGICS = (b"PK\x03\x04", b"\x80")


@dataclass(frozen=True)
class Entry:
    """One value in a state.

    Parameters
    ----------
    key : str
        Where it is, with a dot between levels.
    value : object
        A tensor, or a plain value.
    """

    key: str
    value: Any

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of a tensor; None for anything else."""
        return tuple(self.value.shape) if isinstance(self.value, torch.Tensor) else None

    @property
    def dtype(self) -> str:
        """The dtype of a tensor, as in "float32"; the type of anything else."""
        if isinstance(self.value, torch.Tensor):
            return str(self.value.dtype).removeprefix("torch.")
        return type(self.value).__name__

    @property
    def size_bytes(self) -> int:
        """The bytes of a tensor's values; 0 for anything else."""
        is_tensor = isinstance(self.value, torch.Tensor)
        return self.value.numel() * self.value.element_size() if is_tensor else 0

    @property
    def shown(self) -> Any:
        """The value, where it is a single one."""
        if not isinstance(self.value, torch.Tensor):
            return self.value
        return self.value.item() if self.value.numel() == 1 else None


def state_files(checkpoint: Checkpoint) -> dict[str, Path]:
    """Return the files that hold states, by their names below the directory."""
    path = checkpoint.path
    names = (name for name, directory in filesystem.walk(path) if not directory)
    return {
        name: path / name
        for name in names
        if name.endswith(_STATE_SUFFIXES)
        or (name.endswith(_TEXT_SUFFIXES) and (path / (Path(name).stem + PARAMFILE_EXT)).exists())
    }


def choose_file(checkpoint: Checkpoint, wanted: str) -> tuple[str, Path]:
    """Return the file that a name means: that of a recoverable, or of a file.

    Raises
    ------
    WrongUseError
        If there is none.
    """
    files = state_files(checkpoint)
    for name in (wanted, wanted + PARAMFILE_EXT):
        if name in files:
            return name, files[name]
    raise WrongUseError(
        f"FILE is one that {checkpoint.path.name} holds, got {wanted!r}; it holds "
        f"{', '.join(files) or 'none'}"
    )


def read_file(file: Path, name: str) -> Any:
    """Read a state: text as it is, tensors where only a look is wanted from the page cache.

    Parameters
    ----------
    file : Path
        The file; in a checkpoint, so that the shards it names are found.
    name : str
        That of its recoverable.

    Raises
    ------
    CheckpointDamagedError, UnsafeCheckpointError
        If it cannot be read, or would run code.
    """
    try:
        with filesystem.opened(file) as (descriptor, _):
            magic = filesystem.read_at(descriptor, 4, 0)
        if not magic.startswith(_TENSOR_MAGICS):
            return filesystem.read(file, _TEXT_LIMIT_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointDamagedError(f"{file} cannot be read: {error}") from error
    state = read_state(file, mmap=True)
    return assemble(None, state, file.parent / SHARDS_DIRECTORY, name)


def entries(state: Any) -> list[Entry]:
    """Return the values of a state, nested as it may be, in its order."""
    return [Entry(key, value) for key, value in _flat(state, "")]


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it; what is no number is the text "nan", "inf" or "-inf"."""
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return str(value)


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    children: Iterator[tuple[Any, Any]] | None = None
    if isinstance(value, Mapping) and value:
        children = iter(value.items())
    elif isinstance(value, list | tuple) and any(_is_nested(inner) for inner in value):
        children = iter(enumerate(value))
    if children is None:
        yield path, value
        return
    for key, inner in children:
        yield from _flat(inner, f"{path}.{key}" if path else str(key))


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple | torch.Tensor)
